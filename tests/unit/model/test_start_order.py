import pytest

from kvmctl.model import metadata, start_order, xml
from kvmctl.model.metadata import Metadata
from kvmctl.model.start_order import StartOrder


def test_it_is_kept_beside_the_rest() -> None:
    kept = start_order.put(Metadata(user="me"), StartOrder(3, 20, "a-boot"))
    again = metadata.from_element(xml.parse(xml.raw(metadata.to_element(kept))))
    assert start_order.read(again) == StartOrder(3, 20, "a-boot")
    assert again.user == "me"
    assert start_order.read(start_order.put(again, StartOrder(1))) == StartOrder(1, 0, None)
    assert start_order.put(again, None) == Metadata(user="me")


@pytest.mark.parametrize(
    "text", ["", "order='0'", "order='x'", "order='-1'", "order='1' delay='soon'", "order='9999999'"]
)
def test_nonsense_is_no_order(text: str) -> None:
    element = xml.parse(f"<k:vm xmlns:k='{metadata.NAMESPACE}'><k:autostart {text}/></k:vm>")
    assert start_order.read(metadata.from_element(element)) is None
