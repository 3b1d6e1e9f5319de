"""What kvmctl remembers of a VM in libvirt's own metadata."""

import pytest

from kvmctl.model import metadata, xml
from kvmctl.model.metadata import Creator, Forward, Metadata, OwnedVolume

FULL = Metadata(
    created="2026-01-02T03:04:05+00:00",
    image="debian-12",
    user="admin",
    protected=True,
    volumes=(
        OwnedVolume("default", "a.qcow2", "/var/lib/libvirt/images/a.qcow2"),
        OwnedVolume("default", "a-seed.iso", None, "seed"),
    ),
    forwards=(Forward("tcp", 2222, 22), Forward("udp", 5353, 53, "127.0.0.2")),
    creator=Creator("machine", "boot", 42, 4711),
    extra=('<x:spec xmlns:x="urn:kvmctl:vm:1" a="1">text</x:spec>',),
)


def test_round_trip() -> None:
    read = metadata.from_element(xml.parse(xml.raw(metadata.to_element(FULL))))
    assert read.extra and "spec" in read.extra[0] and "text" in read.extra[0]
    for key in ("created", "image", "user", "protected", "volumes", "forwards", "creator"):
        assert getattr(read, key) == getattr(FULL, key), key


def test_empty_round_trip() -> None:
    assert metadata.from_element(xml.parse(xml.raw(metadata.to_element(Metadata())))) == Metadata()


def test_a_domain_of_another_tool_has_none() -> None:
    other = "<domain><metadata><o:x xmlns:o='urn:other'/></metadata></domain>"
    assert metadata.from_domain(xml.parse(other)) == Metadata()
    assert metadata.from_domain(xml.parse("<domain/>")) == Metadata()


@pytest.mark.parametrize(
    "content",
    [
        "<k:volume/>",
        "<k:volume pool='p'/>",
        "<k:volume pool='' name='n'/>",
        "<k:forward/>",
        "<k:forward protocol='icmp' host='1' guest='1'/>",
        "<k:forward protocol='tcp' host='0' guest='1'/>",
        "<k:forward protocol='tcp' host='65536' guest='1'/>",
        "<k:forward protocol='tcp' host='-1' guest='1'/>",
        "<k:forward protocol='tcp' host='２' guest='1'/>",
        "<k:creator pid='x' started='1'/>",
        "<k:creator/>",
        "<!-- a comment --><?pi?>",
    ],
)
def test_what_somebody_broke_by_hand_is_left_out(content: str) -> None:
    element = xml.parse(f"<k:vm xmlns:k='{metadata.NAMESPACE}'>{content}</k:vm>")
    assert metadata.from_element(element) == Metadata()


def test_put_keeps_what_other_tools_have_there() -> None:
    domain = xml.parse(
        "<domain><name>a</name><title>t</title><metadata><o:x xmlns:o='urn:other'>kept</o:x></metadata>"
        "<memory>1</memory></domain>"
    )
    for protected in (True, False):
        metadata.put(domain, Metadata(image="one", protected=protected))
    assert domain.findtext("metadata/{urn:other}x") == "kept"
    assert metadata.from_domain(domain) == Metadata(image="one")
    assert len(domain.findall("metadata")) == 1


def test_put_makes_the_element_where_libvirts_schema_wants_it() -> None:
    domain = xml.parse("<domain><name>a</name><uuid>u</uuid><memory>1</memory></domain>")
    metadata.put(domain, Metadata(image="one"))
    assert [child.tag for child in domain] == ["name", "uuid", "metadata", "memory"]
