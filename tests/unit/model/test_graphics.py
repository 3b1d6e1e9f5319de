import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model.graphics import graphics_element


def test_loopback_and_a_free_port_unless_told() -> None:
    graphics = graphics_element("vnc")
    assert (graphics.get("port"), graphics.get("autoport")) == ("-1", "yes")
    assert graphics.find("listen[@type='address'][@address='127.0.0.1']") is not None


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_open_address_needs_a_password_or_tls(address: str) -> None:
    with pytest.raises(UsageProblem, match="could be used by anybody"):
        graphics_element("vnc", address)
    assert graphics_element("vnc", address, password="secret").get("passwd") == "secret"
    assert graphics_element("spice", address, tls=True).get("defaultMode") == "secure"


@pytest.mark.parametrize("address", ["", "localhost", "256.0.0.1", "eth0"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageProblem, match="not an IP address"):
        graphics_element("vnc", address)


def test_a_vnc_password_that_would_be_cut_is_refused() -> None:
    with pytest.raises(UsageProblem, match="at most 8 bytes"):
        graphics_element("vnc", password="123456789")


def test_tls_is_not_a_guests_to_ask_for_with_vnc() -> None:
    with pytest.raises(UsageProblem, match="whole host"):
        graphics_element("vnc", "0.0.0.0", tls=True)
