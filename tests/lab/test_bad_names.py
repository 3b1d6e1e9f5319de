"""Hostile names in every place of every command: one clear line, the right exit code, nothing done."""

import signal
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from kvmctl.cli.root import run
from tests.lab.hosts import Host
from tests.unit.cli.test_commands import LEAVES

Named = Callable[[str], str]
HOSTILE = (
    "../x",
    "-rf",
    "a b",
    "x" * 300,
    "a\u202eb",
    "a\u009bb",
    "a\x1b[2Jb",
    "",
    "4294967296",
    "0b9c8f6e-52f1-4b0e-9d0a-3f0f7a0b9c11",
    "a\nb",
    "%s{0}$(true)`true`",
)
# What the other arguments are while one is hostile; by the parameter's name.
FILLERS = {
    "b": "/nowhere.xml",
    "command": "true",
    "destination": "/tmp/no-such-place/x",
    "devices": "0000:7f:1f.7",
    "file": "/tmp/no-such-place/x.png",
    "forwards": "8080:80",
    "iso": "/nowhere.iso",
    "mac": "52:54:00:00:00:01",
    "network": "user",
    "size": "2G",
    "state": "up",
    "wanted": "1G",
    "which": "vda",
}
OPTIONS = {"wait": ("--for", "running"), "create": ("--pxe",)}
# Its words go to the guest, and any are right there.
ANYTHING = {("exec", "command"), ("ssh", "command")}
# With the VM there, and off, these fail for that, or for what else is missing.
FURTHER = {2, 3, 4, 7}


def arguments(command: click.Command) -> list[click.Argument]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Argument)]


CASES = [
    pytest.param(name, index, id=f"{name} {argument.name}")
    for name, command in LEAVES.items()
    for index, argument in enumerate(arguments(command))
    if (name, argument.name) not in ANYTHING
]


@pytest.fixture
def victim(host_a: Host, vm_name: Named) -> str:
    """A VM of another tool's that is off, and that nothing here may change."""
    name = vm_name("victim")
    host_a.conn.defineXML(
        f"<domain type='qemu'><name>{name}</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    )
    return name


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """run() takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def words(name: str, index: int, hostile: str, victim: str, safe: bool) -> list[str]:
    """The command line with ``hostile`` at place ``index``; with ``safe`` after ``--``, so that it is a name at all."""
    filled = []
    for place, argument in enumerate(arguments(LEAVES[name])):
        if place == index:
            filled.append(f"{hostile}:/etc/hosts" if name == "cp" and argument.name == "source" else hostile)
        elif argument.required or place < index:
            usual = FILLERS.get(argument.name or "", victim)
            filled.append(f"{victim}:/x" if name == "cp" and argument.name == "source" else usual)
    return [*name.split(), *OPTIONS.get(name, ()), *(["--"] if safe else []), *filled]


def is_harmless(text: str) -> bool:
    return all(c == "\n" or unicodedata.category(c)[0] != "C" for c in text)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_hostile_name_is_refused_in_one_line(
    host_a: Host,
    victim: str,
    name: str,
    index: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", host_a.uri)
    monkeypatch.setenv("EDITOR", "false")
    what = arguments(LEAVES[name])[index]
    # A snapshot may be called what a VM may not, and then fails for what the VM has not.
    names_a_vm = what.name in ("vm", "names", "name", "source", "new_name") and name != "snapshot create"
    expected = {2, 3} if names_a_vm else FURTHER
    before = host_a.conn.lookupByName(victim).XMLDesc(0)
    wrong = []
    for hostile in HOSTILE:
        for safe in (False, True):
            line = words(name, index, hostile, victim, safe)
            code = run(line)
            told = capsys.readouterr()
            problems = [
                *([f"exit code {code}"] if code not in expected else []),
                *(["unexpected"] if "unexpected " in told.err or "Traceback" in told.err else []),
                *(["control characters"] if not is_harmless(told.out + told.err) else []),
                *(["more than a line and a hint"] if len(told.err.splitlines()) > 3 else []),
                *(["no error"] if not told.err.startswith(("error: ", "warning: ")) else []),
            ]
            if problems:
                wrong.append((line, problems, told.err[:300]))
    assert not wrong, "\n".join(map(str, wrong))
    assert host_a.conn.lookupByName(victim).XMLDesc(0) == before


@pytest.mark.parametrize("command", ["apply", "diff", "create"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_file_name_is_refused(
    host_a: Host, command: str, hostile: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", host_a.uri)
    assert run([command, f"--file={hostile}"]) in (2, 3)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert is_harmless(err)


FOREIGN = ("-rf", "a b", "y" * 200, "evil\u202e\u009b", "12345", "a'b\"c&#38;", "ünïcode")
LOOKING = ("info", "export", "nic list", "disk list", "snapshot list", "snapshot tree", "port list", "list", "stats")


@pytest.mark.parametrize("name", FOREIGN)
def test_another_tools_vm_of_a_strange_name_is_shown_and_managed(
    host_a: Host, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", host_a.uri)
    written = name.replace("&", "&amp;")
    domain = host_a.conn.defineXML(
        f"<domain type='qemu'><name>{written}</name><title>t\u009b2J\u202e</title><memory>65536</memory>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )
    for command in LOOKING:
        for output in ("table", "wide", "json", "yaml", "name"):
            code = run([*command.split(), "-o", output, "--", domain.name()])
            told = capsys.readouterr()
            # Its number is an id before it is a name; its UUID always works.
            assert code in ((0, 3, 4) if command == "stats" else (0,)), (command, output, told.err)
            assert is_harmless(told.out + told.err), (command, output)
    for command in ("protect", "unprotect", "autostart"):
        assert run([command, "--", domain.name()]) == 0
    assert run(["set", "--title", "", "--", domain.name()]) == 0
    assert run(["delete", "--yes", "--", domain.name()]) == 0
    capsys.readouterr()
    assert domain.name() not in [other.name() for other in host_a.conn.listAllDomains(0)]
