import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.model.disk import DiskTuning, ExistingDisk, NewDisk, Source, disk_element, next_target, parse_disk


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", NewDisk(10 * 1024**3)),
        ("10G", NewDisk(10 * 1024**3)),
        ("size=1.5G", NewDisk(3 * 512 * 1024**2)),
        ("512M,bus=scsi,format=raw,pool=fast", NewDisk(512 * 1024**2, DiskTuning(bus="scsi"), "raw", "fast")),
        ("/srv/a.qcow2", ExistingDisk("/srv/a.qcow2")),
        ("./8.img,cache=none", ExistingDisk("./8.img", DiskTuning(cache="none"))),
        ("path=/srv/b,readonly", ExistingDisk("/srv/b", DiskTuning(readonly=True))),
        ("/srv/c=d.img,shareable", ExistingDisk("/srv/c=d.img", DiskTuning(shareable=True))),
    ],
)
def test_reads_what_users_write(text: str, expected: object) -> None:
    assert parse_disk(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",bus=virtio",
        "0",
        "10X",
        "10G,bus=ata",
        "10G,bus=",
        "10G,bus",
        "10G,format=vmdk",
        "10G,cache=fast",
        "10G,x=y",
        "/a,pool=p",
        "10G,bus=scsi,bus=sata",
        "size=1G,path=/a",
        "10G,serial=" + "x" * 37,
        "10G,serial=\x1b",
        "/a\nb",
        "99999999999999G",
        "2049T",
        "4294967296",
        "1k",
    ],
)
def test_refuses_nonsense(text: str) -> None:
    with pytest.raises(UsageProblem):
        parse_disk(text)


def test_names_devices_in_libvirts_order() -> None:
    taken: set[str] = {"vda"}
    names = [next_target("virtio", taken) for _ in range(27)]
    assert names[0] == "vdb"
    assert names[24:] == ["vdz", "vdaa", "vdab"]


def test_an_element_says_where_the_bytes_are() -> None:
    disk = disk_element(
        Source("block", "/dev/vg/a"), "sda", "scsi", "raw", DiskTuning(serial="s1", readonly=True), boot=1
    )
    assert disk.get("type") == "block"
    assert disk.find("source[@dev='/dev/vg/a']") is not None
    assert disk.find("readonly") is not None
    assert [child.tag for child in disk] == ["driver", "source", "target", "readonly", "serial", "boot"]
    assert "discard" not in xml.text(disk)
