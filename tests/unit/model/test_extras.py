import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import extras, xml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("watchdog", '<watchdog model="i6300esb" action="reset"/>'),
        ("watchdog,action=pause", '<watchdog model="i6300esb" action="pause"/>'),
        ("vsock", '<vsock model="virtio"><cid auto="yes"/></vsock>'),
        ("panic", '<panic model="isa"/>'),
        ("parallel", '<parallel type="pty"/>'),
        (
            "share=/srv/my data:data,readonly",
            '<filesystem type="mount" accessmode="mapped"><source dir="/srv/my data"/><target dir="data"/><readonly/>'
            "</filesystem>",
        ),
    ],
)
def test_what_each_becomes(text: str, expected: str) -> None:
    made = extras.parse_device(text)
    assert xml.raw(made.element) == expected
    assert made.shared_memory is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "toaster",
        "watchdog,action=explode",
        "watchdog=x",
        "watchdog,color=red",
        "vsock,vsock,vsock",
        "share=data:data",
        "share=/srv",
        "share=/srv:",
        "share=/srv:a b",
        "share=/srv:" + "x" * 32,
        "share=/srv:data,driver=nfs",
        "share=/srv:data,driver=virtiofs,readonly",
    ],
)
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(UsageProblem, match="--device"):
        extras.parse_device(text)


def test_virtiofs_brings_shared_memory() -> None:
    domain = xml.parse("<domain><memoryBacking><hugepages/></memoryBacking><devices/></domain>")
    extras.add_to(domain, (extras.parse_device("share=/srv:data,driver=virtiofs"),))
    assert [child.tag for child in domain.iterfind("memoryBacking/*")] == ["hugepages", "source", "access"]
    assert domain.find("devices/filesystem/driver[@type='virtiofs']") is not None


UUID = "4b20d080-1b54-4048-85b3-a6a62d165c01"
GUEST = f"""<domain><devices><serial type='pty'><source path='/dev/pts/3'/></serial><rng><backend>/dev/urandom</backend>
</rng><rng><backend>/dev/random</backend></rng><watchdog model='i6300esb'/><vsock><cid auto='yes' address='3'/></vsock>
<filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/><target dir='data'/></filesystem>
<filesystem type='mount'><source dir='/old'/><target dir='old'/><readonly/></filesystem><panic model='isa'/>
<hostdev type='mdev' model='vfio-pci'><source><address uuid='{UUID}'/></source></hostdev>
<hostdev type='pci'><source/></hostdev></devices></domain>"""


def test_what_a_vm_has() -> None:
    found = [(device.name, device.kind, device.detail) for device in extras.attached(xml.parse(GUEST))]
    assert found == [
        ("watchdog0", "watchdog", "i6300esb, reset"),
        ("vsock0", "vsock", "cid 3"),
        ("panic0", "panic", "isa"),
        ("serial0", "serial", "/dev/pts/3"),
        ("rng0", "rng", "/dev/urandom"),
        ("rng1", "rng", "/dev/random"),
        ("share=data", "share", "/srv, virtiofs"),
        ("share=old", "share", "/old, 9p, readonly"),
        (f"mdev={UUID}", "mdev", "vfio-pci"),
    ]
    assert extras.attached(None) == []


def test_one_is_named_by_its_name_or_its_kind() -> None:
    devices = extras.attached(xml.parse(GUEST))
    for text, name in (
        ("rng1", "rng1"),
        ("vsock", "vsock0"),
        ("share=old", "share=old"),
        (f"mdev={UUID}", f"mdev={UUID}"),
    ):
        hit = extras.select(devices, text)
        assert hit is not None and hit.name == name
    assert extras.select(devices, "rng7") is None
    assert extras.select(devices, "parallel") is None
    with pytest.raises(UsageProblem, match="rng0, rng1"):
        extras.select(devices, "rng")
    for text in ("", "toaster", "rng-1", "rng1234", "0rng", "share=", "rng0\n"):
        with pytest.raises(UsageProblem, match="names no device"):
            extras.select(devices, text)


def test_a_mediated_device() -> None:
    made = extras.parse_device(f"mdev={UUID},display=on")
    assert made.mdev == UUID
    assert made.element.get("display") == "on"
    for text in ("mdev", "mdev=", "mdev=1", f"mdev={UUID},display=maybe", f"mdev={UUID},color=red"):
        with pytest.raises(UsageProblem):
            extras.parse_device(text)


def test_memory_is_shared_once() -> None:
    domain = xml.parse("<domain><memoryBacking><access mode='private'/></memoryBacking></domain>")
    assert extras.memory_is_shared(domain) is False
    for _ in range(2):
        extras.share_memory(domain)
        assert xml.raw(domain[0]) == ('<memoryBacking><source type="memfd"/><access mode="shared"/></memoryBacking>')
    assert extras.memory_is_shared(domain) is True
