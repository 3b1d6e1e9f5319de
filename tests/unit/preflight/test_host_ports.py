"""Who listens on the host's ports, from /proc as the kernel writes it."""

from pathlib import Path

import pytest

from kvmctl.errors import Conflict
from kvmctl.model.metadata import Forward
from kvmctl.preflight.host_ports import holder, listeners, refuse_in_use

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc where sshd listens everywhere, dnsmasq on 192.168.122.1, and one connection is open."""
    net = tmp_path / "self" / "net"
    net.mkdir(parents=True)
    rest = "00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0\n"
    (net / "tcp").write_text(
        HEAD
        + "   0: 017AA8C0:0035 "
        + rest.format(state="0A", inode=11)
        + "   1: 0100007F:1F90 "
        + rest.format(state="01", inode=12)
    )
    six = "00000000000000000000000000000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0 0\n"
    (net / "tcp6").write_text(HEAD + "   0: 00000000000000000000000000000000:0016 " + six.format(state="0A", inode=13))
    (net / "udp").write_text(HEAD + "   0: 00000000:0043 " + rest.format(state="07", inode=14))
    for pid, name, inode in ((7, "sshd", 13), (8, "dnsmasq", 11)):
        folder = tmp_path / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to(f"socket:[{inode}]")
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")
    return tmp_path


def test_listening_sockets_are_found(proc: Path) -> None:
    found = {(one.protocol, one.address, one.port) for one in listeners(proc)}
    assert found == {("tcp", "192.168.122.1", 53), ("tcp", "::", 22), ("udp", "0.0.0.0", 67)}


@pytest.mark.parametrize(
    ("forward", "who"),
    [
        (Forward("tcp", 22, 22), "sshd (pid 7)"),
        (Forward("tcp", 22, 22, "127.0.0.1"), "sshd (pid 7)"),
        (Forward("tcp", 53, 53), "dnsmasq (pid 8)"),
        (Forward("tcp", 53, 53, "192.168.122.1"), "dnsmasq (pid 8)"),
        (Forward("udp", 67, 67), "another program"),
    ],
)
def test_a_port_in_use_is_refused_with_who(proc: Path, forward: Forward, who: str) -> None:
    with pytest.raises(Conflict) as caught:
        refuse_in_use([forward], None, proc)
    assert f"in use by {who}" in caught.value.message


@pytest.mark.parametrize(
    "forward",
    [
        Forward("udp", 22, 22),
        Forward("tcp", 53, 53, "10.0.0.1"),
        # An open connection from that port is nobody who listens there.
        Forward("tcp", 8080, 80),
    ],
)
def test_a_free_port_is_not(proc: Path, forward: Forward) -> None:
    refuse_in_use([forward], None, proc)


def test_a_holder_that_cannot_be_seen_is_none(proc: Path) -> None:
    assert holder(99, proc) is None
