"""The plain command line of a creation, read without click, means what click makes of it."""

import shlex
from collections.abc import Mapping
from typing import Any

import pytest

from kvmctl.cli import creating
from kvmctl.cli.app import App
from kvmctl.cli.root import root


def by_click(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> tuple[App, str | None, dict[str, Any]]:
    seen: list[tuple[App, str | None, dict[str, Any]]] = []

    def create(app: App, name: str | None, said: Mapping[str, Any]) -> None:
        seen.append((app, name, dict(said)))

    monkeypatch.setattr(creating, "create", create)
    root.main(args=arguments, prog_name="kvmctl", obj=App(), standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize(
    "line",
    [
        "create web",
        "-c qemu:///session -o json create web --image debian-12 --wait ssh --timeout 5m",
        "create -q web --image debian-12 --memory 4G --vcpus 2 --disk 20G --disk 1G -p 8080:80 --publish 22:22",
        "create tiny --kernel vmlinuz --initrd initrd --cmdline 'a=b c' --cmdline -x --net user --net none",
        "create --memory 512 a --import /srv/a.qcow2 --no-start --autostart --dry-run --firmware uefi -o name",
        "create b --cdrom b.iso --ssh-key a.pub --ssh-key b.pub",
        "create '' --image ''",
    ],
)
def test_reads_what_click_reads(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    arguments = shlex.split(line)
    plain, clicked = creating.plain(arguments), by_click(monkeypatch, arguments)
    assert plain is not None
    assert plain[1:] == clicked[1:] and vars(plain[0]) == vars(clicked[0])


@pytest.mark.parametrize(
    "line",
    [
        "create",
        "create a b",
        "create a --vcpus 2,max=4",
        "create a --vcpus 0",
        "create a --vcpus ²",
        "create a --vcpus 16385",
        "create a --memory much",
        "create a --memory 1G,max=2G",
        "create a --wait forever",
        "create a --timeout soon",
        "create a --firmware coreboot",
        "create a --disk",
        "create a --image",
        "create a --memory=1G",
        "create a -o wide",
        "create a --tpm",
        "create -f a.yaml",
        "create -- a",
        "net create a",
        "snapshot create a",
    ],
)
def test_leaves_the_rest_to_click(line: str) -> None:
    assert creating.plain(line.split()) is None


def test_every_word_it_knows_is_an_option_of_the_command() -> None:
    from kvmctl.cli.create import create

    known = {option for param in create.params for option in (*param.opts, *param.secondary_opts)}
    assert {*creating._ONCE, *creating._REPEATED, *creating._FLAGS} <= known
    names = {param.name for param in create.params}
    assert {name for name, _ in creating._ONCE.values()} | set(creating._REPEATED.values()) <= names
