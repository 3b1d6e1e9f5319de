"""Reading and building XML as trees, with nothing in a document able to reach outside it."""

from typing import Any

from lxml import etree as etree

from kvmctl.errors import UsageProblem

Element = etree._Element

# libvirt itself takes no larger document over its wire (VIR_NET_MESSAGE_STRING_MAX is 4 MiB).
LARGEST_XML = 4 * 1024 * 1024


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=False,
        remove_pis=False,
    )


def parse(text: str | bytes, what: str = "XML", root: str | None = None) -> Element:
    """The root element of ``text``.

    Raises UsageProblem where it is not well formed, larger than libvirt takes, has a DOCTYPE (the door
    for external entities and entity bombs), or its root is not ``root``.
    """
    data = text.encode() if isinstance(text, str) else text
    if len(data) > LARGEST_XML:
        raise UsageProblem(f"the {what} is larger than 4 MiB, the most that libvirt takes")
    try:
        element = etree.fromstring(data, _parser())
    except (etree.XMLSyntaxError, ValueError) as error:
        # lxml adds the place twice, with a file name that it made up.
        reason = str(error).splitlines()[0].partition(" (<string>")[0] if str(error) else "empty"
        raise UsageProblem(f"the {what} is not well-formed XML: {reason}") from None
    tree = element.getroottree()
    if tree.docinfo.doctype or tree.docinfo.internalDTD is not None:
        raise UsageProblem(f"the {what} has a DOCTYPE, which libvirt documents never need", "remove it")
    if root is not None and element.tag != root:
        raise UsageProblem(f"the {what} begins with <{element.tag!s}>, not <{root}>")
    return element


def text(element: Element) -> str:
    """``element`` as indented text, as libvirt and people read it."""
    etree.indent(element, space="  ")
    return etree.tostring(element, encoding="unicode") + "\n"


def raw(element: Element) -> str:
    """``element`` as text, white space as it stands: for a tree that was read and changed in place."""
    return etree.tostring(element, encoding="unicode")


def new(tag: str, content: str | int | None = None, **attributes: Any) -> Element:
    """A new element; attributes of None are left out, ``type_`` stands for ``type``."""
    element = etree.Element(tag)
    return _fill(element, content, attributes)


def add(parent: Element, tag: str, content: str | int | None = None, **attributes: Any) -> Element:
    """A new last child of ``parent``; see new()."""
    element = etree.SubElement(parent, tag)
    return _fill(element, content, attributes)


def _fill(element: Element, content: str | int | None, attributes: dict[str, Any]) -> Element:
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_"), str(value))
    if content is not None:
        element.text = str(content)
    return element
