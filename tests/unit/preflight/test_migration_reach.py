"""What the source says of the way to the destination, and what either says of its clock."""

import socket
from pathlib import Path

import pytest

from kvmctl.preflight import migration_reach, over_ssh
from kvmctl.preflight.over_ssh import Told
from tests.unit.preflight.test_migration_host import Conn, sides

HERE, THERE = sides(there=Conn("127.0.0.1")), sides(there=Conn("there"))


class Remote(Conn):
    """A host that is reached over ssh."""

    def getURI(self) -> str:
        return f"qemu+ssh://{self.name}/system"


def test_a_name_that_the_source_does_not_know_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(migration_reach._named(HERE, None, "127.0.0.1")) == []

    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    # No name server is asked here.
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (found,) = migration_reach._named(THERE, None, "no-such-host.invalid")
    assert found.level == "warn" and "no-such-host.invalid" in found.detail and "migration_host" in str(found.hint)


def test_a_remote_source_says_itself_what_it_reaches() -> None:
    remote = THERE._replace(source=sides(there=Remote("far")).destination)
    (found,) = migration_reach._named(remote, Told(named=False), "b")
    assert found.detail.startswith("the source cannot resolve b")
    assert list(migration_reach._named(remote, None, "b")) == []
    levels = [migration_reach._told_port(told, "b").level for told in (None, Told(), Told(port=True), Told(port=False))]
    assert levels == ["unknown", "unknown", "ok", "warn"]


@pytest.mark.parametrize(
    ("ahead", "level", "says"),
    [
        (None, "unknown", "told over ssh alone"),
        ((-0.3, 0.1), "ok", "the same time, to 0.3 s"),
        ((0.9, 1.3), "ok", "to 1.3 s"),
        ((299.8, 300.2), "warn", "5 min ahead of the source's"),
        ((-7.4, -7.0), "warn", "7 s behind the source's"),
    ],
)
def test_clocks_are_compared(ahead: tuple[float, float] | None, level: str, says: str) -> None:
    found = migration_reach._clock(THERE._replace(destination=sides(there=Remote("b")).destination), None, Told(ahead))
    assert found.level == level and says in found.detail


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", Told()),
        ("clock 105.5\n", Told((3.5, 5.5))),
        ("clock soon\nnamed no\n", Told(named=False)),
        (
            "clock 102\nnamed yes\nport bash: line 1: connect: Connection refused\nport end 1\n",
            Told((0, 2), True, "", True),
        ),
        ("port end 0\n", Told(None, True)),
        ("port end 124\n", Told(None, False, "no answer")),
        (
            "named no\nport bash: x: Name or service not known\nport bash: x/1: Invalid argument\nport end 1\n",
            Told(None, False, "Invalid argument", False),
        ),
        ("port timeout: failed to run command 'bash'\nport end 127\n", Told()),
    ],
)
def test_what_a_host_prints_is_read(said: str, told: Told) -> None:
    assert over_ssh.read(said, 100, 102) == told


def test_ssh_is_called_as_libvirt_calls_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run by a program in ssh's place, that shows what it was given and obeys it."""
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/seen\nfor last; do :; done; exec sh -c "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    class Keyed(Conn):
        def getURI(self) -> str:
            return "qemu+ssh://me@b:2222/system?keyfile=/k&no_verify=1"

    told = over_ssh.ask(sides(there=Keyed()).destination, "127.0.0.1", 1, "localhost; exit 3")
    assert told is not None and told.ahead is not None and told.ahead[0] <= 0 <= told.ahead[1]
    assert (told.port, told.named) == (True, False)
    seen = (tmp_path / "seen").read_text()
    assert "BatchMode=yes" in seen and "-p 2222 -l me -i /k -o StrictHostKeyChecking=no -- b bash -c" in seen
    assert over_ssh.ask(sides(there=Conn("b")).destination) is None
