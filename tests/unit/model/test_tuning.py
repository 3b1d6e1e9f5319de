import pytest

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model import tuning, xml
from kvmctl.model.tuning import DiskLimit, MemoryLimit, NetLimit, Numa, Pin

DOMAIN = """<domain><os><type>hvm</type><boot dev='hd'/></os><cpu mode='host-model'><topology sockets='1'/></cpu>
<devices><disk device='disk'><target dev='vda'/><boot order='1'/></disk><disk device='cdrom'><target dev='sda'/></disk>
<disk device='disk'><target dev='vdb'/></disk><interface><mac address='52:54:00:AA:00:01'/></interface>
</devices></domain>"""


@pytest.mark.parametrize(
    ("text", "pin"),
    [("0:2", Pin(0, frozenset({2}))), ("3:0-2,7", Pin(3, frozenset({0, 1, 2, 7}))), ("1:all", Pin(1, frozenset()))],
)
def test_a_pin(text: str, pin: Pin) -> None:
    assert tuning.parse_pin(text) == pin


@pytest.mark.parametrize("text", ["", "0", "0:", ":1", "0:3-1", "a:1", "0:1;2", "0:-1", "0:1-", "-1:0", "0:1,,2"])
def test_what_is_no_pin(text: str) -> None:
    with pytest.raises(UsageProblem):
        tuning.parse_pin(text)


def test_limits() -> None:
    assert tuning.parse_disk_limit("vda,iops=500,bps=10M") == DiskLimit("vda", 500, 10 << 20)
    assert tuning.parse_disk_limit("vda,bps=0") == DiskLimit("vda", None, 0)
    assert tuning.parse_net_limit("52:54:00:AA:00:01,in=1M") == NetLimit("52:54:00:aa:00:01", 1 << 20, None)


@pytest.mark.parametrize(
    "text", ["vda", "vda,", "vda,iops", "vda,iops=x", "vda,speed=1", ",iops=1", "vda,iops=1,iops=2"]
)
def test_what_is_no_disk_limit(text: str) -> None:
    with pytest.raises(UsageProblem):
        tuning.parse_disk_limit(text)


@pytest.mark.parametrize("text", ["x", "x,in", "x,in=1", "x,up=1M", ",in=1M", "x,in=1M,in=2M"])
def test_what_is_no_net_limit(text: str) -> None:
    with pytest.raises(UsageProblem):
        tuning.parse_net_limit(text)


def test_the_boot_order_replaces_what_was_said_of_it() -> None:
    domain = xml.parse(DOMAIN)
    assert tuning.boot_of(domain) == ["vda"]
    tuning.set_boot(domain, ["network", "cdrom", "disk", "vdb"], "web")
    assert tuning.boot_of(domain) == ["52:54:00:AA:00:01", "sda", "vda", "vdb"]
    assert domain.find("os/boot") is None
    tuning.set_boot(domain, ["52:54:00:aa:00:01"], "web")
    assert tuning.boot_of(domain) == ["52:54:00:AA:00:01"]


@pytest.mark.parametrize(
    ("words", "error"), [(["floppy"], NotFound), (["vda", "disk", "vda"], UsageProblem), ([""], NotFound)]
)
def test_what_cannot_be_booted_from(words: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        tuning.set_boot(xml.parse(DOMAIN), words, "web")


@pytest.mark.parametrize("cpu", ["maximum", "host-model", "host-passthrough", "Skylake-Client"])
def test_another_cpu_keeps_its_topology(cpu: str) -> None:
    domain = xml.parse(DOMAIN)
    tuning.set_cpu(domain, cpu)
    assert tuning.cpu_of(domain) == cpu
    assert domain.find("cpu/topology") is not None
    assert len(domain.findall("cpu")) == 1


def test_huge_pages_go_as_they_came() -> None:
    domain = xml.parse(DOMAIN)
    before = xml.raw(domain)
    tuning.set_hugepages(domain, False)
    assert xml.raw(domain) == before
    tuning.set_hugepages(domain, True)
    assert domain.find("memoryBacking/hugepages") is not None
    tuning.set_hugepages(domain, False)
    assert xml.raw(domain) == before


def test_memory_limits() -> None:
    assert tuning.parse_memory_limit("hard=2G,soft=1500M") == MemoryLimit(2 << 30, 1500 << 20)
    assert tuning.parse_memory_limit("soft=0") == MemoryLimit(None, 0)
    domain = xml.parse("<domain><memtune><min_guarantee unit='KiB'>7</min_guarantee></memtune></domain>")
    tuning.set_memory_limit(domain, MemoryLimit(2 << 30, 1 << 30))
    assert tuning.memory_limit_of(domain) == MemoryLimit(2 << 30, 1 << 30)
    tuning.set_memory_limit(domain, MemoryLimit(None, 0))
    assert tuning.memory_limit_of(domain) == MemoryLimit(2 << 30, 0)
    assert domain.findtext("memtune/min_guarantee") == "7"


@pytest.mark.parametrize("text", ["", "1G", "hard", "hard=", "hard=1G,hard=2G", "swap=1G", "hard=1G,soft=2G"])
def test_what_is_no_memory_limit(text: str) -> None:
    with pytest.raises(UsageProblem):
        tuning.parse_memory_limit(text)


def test_numa_nodes_divide_vcpus_and_memory() -> None:
    domain = xml.parse("<domain><memory>1048577</memory><vcpu>5</vcpu><cpu mode='maximum'/></domain>")
    tuning.set_numa(domain, Numa(2, "0-1"))
    cells = [(cell.get("id"), cell.get("cpus"), cell.get("memory")) for cell in domain.iterfind("cpu/numa/cell")]
    assert cells == [("0", "0-1", "524288"), ("1", "2-4", "524289")]
    assert tuning.numa_of(domain) == Numa(2, "0-1")
    tuning.set_numa(domain, Numa(3))
    assert tuning.numa_of(domain) == Numa(3)
    with pytest.raises(UsageProblem, match="5 vCPUs"):
        tuning.set_numa(domain, Numa(6))
    tuning.set_numa(domain, Numa(0))
    assert xml.raw(domain[2]) == '<cpu mode="maximum"/>'
    assert tuning.parse_numa("2,host=0-1,3") == Numa(2, "0-1,3")


@pytest.mark.parametrize("text", ["", "x", "-1", "2,", "2,host=", "2,host=a", "2,host=0-", "2;host=0", "1000", "2\n"])
def test_what_is_no_numa(text: str) -> None:
    with pytest.raises(UsageProblem):
        tuning.parse_numa(text)
