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
