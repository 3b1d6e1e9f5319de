"""All that can be tuned: into a new domain, and read back from it."""

import pytest

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model import spec_tuning, tuned, xml
from kvmctl.model.domain import build
from kvmctl.model.spec import Spec, from_mapping
from kvmctl.model.start_order import StartOrder
from kvmctl.model.tuned import Tuning
from tests.unit.model.test_domain import spec as domain_spec

WORDS = {
    "pins": ("0:0", "1:0-1"),
    "cpu_shares": 512,
    "cpu_limit": 50,
    "hugepages": True,
    "memory_limit": "soft=4G,hard=8G",
    "numa": "2,host=0",
    "boot": "network,disk",
}


def domain() -> xml.Element:
    return build(domain_spec())


def test_what_is_applied_is_told_again() -> None:
    tree = domain()
    tuned.apply(tree, tuned.from_words(WORDS), "web")
    told = spec_tuning.told(tree, StartOrder(2, 30))
    assert told == {
        "pins": ("0:0", "1:0,1"),
        "cpu_shares": 512,
        "cpu_limit": 50,
        "hugepages": True,
        "memory_limit": "soft=4G,hard=8G",
        "numa": "2,host=0",
        "boot": ("network", "disk"),
        "autostart_order": 2,
        "autostart_delay": 30,
    }
    assert list(spec_tuning.unlike(Spec(**told), tree, StartOrder(2, 30))) == []
    assert tuned.beyond(tree) == []


def test_an_untuned_domain_says_nothing() -> None:
    tree = domain()
    told = spec_tuning.told(tree, None)
    # create itself gives its devices an order.
    assert {key: value for key, value in told.items() if key != "boot"} == dict.fromkeys(told.keys() - {"boot"})
    before = xml.raw(tree)
    tuned.apply(tree, Tuning(cpu_percent=0, hugepages=False), "web")
    assert xml.raw(tree) == before


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ({"pins": ("9:0",)}, UsageProblem, "has no vCPU 9"),
        ({"memory_limit": "hard=1G"}, UsageProblem, "would kill|less than"),
        ({"numa": "5"}, UsageProblem, "more than its 4 vCPUs"),
        ({"boot": "floppy"}, NotFound, "no 'floppy' to boot from"),
        ({"boot": "disk,disk,disk,disk,disk,disk"}, UsageProblem, "twice"),
    ],
)
def test_what_no_such_guest_can_have(words: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tuned.apply(domain(), tuned.from_words(words), "web")


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<memtune><swap_hard_limit>1</swap_hard_limit></memtune>", ["<memtune>"]),
        ("<cputune><emulatorpin cpuset='0'/></cputune>", ["<cputune>"]),
        ("<numatune><memory mode='interleave' nodeset='0'/></numatune>", ["<numatune>"]),
        ("<memoryBacking><locked/></memoryBacking>", ["<memoryBacking>"]),
        (
            "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>",
            ["the size of its huge pages"],
        ),
        (
            "<vcpu>2</vcpu><memory>2048</memory><cpu><numa><cell id='0' cpus='0' memory='1024'/>"
            "<cell id='1' cpus='1' memory='1024'/></numa></cpu>",
            [],
        ),
        (
            "<vcpu>2</vcpu><memory>4096</memory><cpu><numa><cell id='0' cpus='0' memory='1024'/>"
            "<cell id='1' cpus='1' memory='3072'/></numa></cpu>",
            ["the CPU's <numa>"],
        ),
        (
            "<devices><disk><iotune><read_iops_sec>1</read_iops_sec></iotune></disk></devices>",
            ["some limits of its disks"],
        ),
        (
            "<devices><interface><bandwidth><inbound average='1' burst='2'/></bandwidth></interface></devices>",
            ["some limits of its cards"],
        ),
    ],
)
def test_what_has_no_words_is_told(inside: str, said: list[str]) -> None:
    assert tuned.beyond(xml.parse(f"<domain>{inside}</domain>")) == said


def test_pins_that_are_not_named_any_more_are_let_go() -> None:
    tree = domain()
    tuned.apply(tree, tuned.from_words(WORDS), "web")
    wanted = spec_tuning.wanted(from_mapping({"pins": ["1:3"]}, "x"), "pins", tree)
    tuned.apply(tree, wanted, "web")
    assert tuned.pins_of(tree) == ("1:3",)
    assert [key for key, _, _ in spec_tuning.unlike(Spec(pins=("0:0", "1:3")), tree, None)] == ["pins"]
