"""What the kernel tells of the guests of this machine."""

from pathlib import Path

from kvmctl.preflight.here import neighbours

ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
192.168.122.9    0x1         0x2         52:54:00:AA:00:01     *        virbr0
192.168.122.10   0x1         0x0         00:00:00:00:00:00     *        virbr0
192.168.122.11   0x1         0x6         52:54:00:aa:00:03     *        virbr0
a line
of nonsense 0xzz and more
"""


def test_neighbours_whose_mac_is_known(tmp_path: Path) -> None:
    table = tmp_path / "arp"
    table.write_text(ARP)
    assert neighbours(table) == [
        ("192.168.122.9", "52:54:00:aa:00:01"),
        ("192.168.122.11", "52:54:00:aa:00:03"),
    ]
    assert neighbours(tmp_path / "nothing") is None


def test_this_machines_own_table_is_read() -> None:
    assert neighbours() is not None
