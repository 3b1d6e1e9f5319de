"""Reading XML so that nothing in it reaches outside it, and building it as trees."""

from pathlib import Path

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import xml

LAUGHS = (
    '<!DOCTYPE d [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><d>&i;</d>"
)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "plain", "<a>", "<a></b>", "<a/><b/>", "<a b='1' b='2'/>", "<a>\x00</a>", "<a>&undefined;</a>"),
        "<?xml version='1.0' encoding='utf-16'?><a/>",
        "<!DOCTYPE domain><domain/>",
        "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain>&x;</domain>",
        "<!DOCTYPE domain [<!ENTITY % x SYSTEM 'http://127.0.0.1:1/x'> %x;]><domain/>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
        LAUGHS,
        "<a>" * 100_000,
    ],
    ids=range(16),
)
def test_what_libvirt_documents_never_are_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        xml.parse(text, "domain XML")
    assert "domain XML" in caught.value.message
    assert "\n" not in caught.value.message


def test_an_external_entity_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    with pytest.raises(UsageProblem) as caught:
        xml.parse(f"<!DOCTYPE d [<!ENTITY x SYSTEM '{secret.as_uri()}'>]><d>&x;</d>")
    assert "hidden" not in str(caught.value)


def test_the_size_has_a_limit() -> None:
    with pytest.raises(UsageProblem, match="4 MiB"):
        xml.parse("<a>" + "x" * xml.LARGEST_XML + "</a>")


def test_the_root_is_checked() -> None:
    assert xml.parse("<domain/>", root="domain").tag == "domain"
    with pytest.raises(UsageProblem, match="begins with <network>"):
        xml.parse("<network/>", "file", root="domain")


def test_comments_instructions_namespaces_and_space_survive() -> None:
    text = '<domain xmlns:q="urn:q"><!-- mine --><?pi x?>\n\t<q:commandline a="1"/>  text</domain>'
    assert xml.raw(xml.parse(text)) == text


def test_declared_encodings_are_honoured() -> None:
    assert xml.parse('<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>'.encode("latin-1")).text == "é"


def test_building_escapes_whatever_is_put_in() -> None:
    domain = xml.new("domain", type_="kvm", id=None)
    xml.add(domain, "name", "<&\"'>")
    xml.add(domain, "memory", 1024, unit="KiB")
    xml.add(domain, "os", class_="]]>")
    assert xml.text(domain) == (
        '<domain type="kvm">\n  <name>&lt;&amp;"\'&gt;</name>\n  <memory unit="KiB">1024</memory>\n'
        '  <os class="]]&gt;"/>\n</domain>\n'
    )
    assert xml.parse(xml.text(domain)).findtext("name") == "<&\"'>"
