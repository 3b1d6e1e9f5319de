"""What can be refused before anything is built."""

import os
import shutil
from pathlib import Path

import pytest

from kvmctl.errors import KvmctlError, Refused, UsageProblem
from kvmctl.operations import apt_sources, image_build
from kvmctl.operations.progress import Progress


@pytest.mark.parametrize("name", ["debian-12", "debian12", "12", "bookworm", "debian-bookworm", "Debian-12"])
def test_the_names_of_a_suite(name: str) -> None:
    assert image_build.suite(name) == image_build.Suite("bookworm", "debian-12", "debian12")


def test_sid() -> None:
    assert image_build.suite("unstable").codename == image_build.suite("debian-sid").codename == "sid"


@pytest.mark.parametrize("name", ["", "debian", "debian-9", "jammy", "../x", "--help", "bookworm main", "1" * 300])
def test_unknown_suites(name: str) -> None:
    with pytest.raises(UsageProblem, match="no Debian suite"):
        image_build.suite(name)


@pytest.mark.parametrize("package", ["-rf", "a b", "vim,emacs", "VIM", "$(id)", "vim;id", ""])
def test_package_names_are_checked(package: str) -> None:
    with pytest.raises(UsageProblem, match="not the name of a Debian package"):
        image_build.plan("debian-12", include=[package])


def test_size_and_kernel_are_checked() -> None:
    with pytest.raises(UsageProblem, match="too small"):
        image_build.plan("debian-12", size=1024**3)
    with pytest.raises(UsageProblem, match="no kernel 'tiny'"):
        image_build.plan("debian-12", kernel="tiny")


def test_missing_tools_are_named_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_build, "TOOLS", {"no-such-tool": ("its-package", "its-rpm")})
    with pytest.raises(Refused) as refused:
        image_build.check_tools()
    assert "no-such-tool" in refused.value.message
    assert "its-package" in (refused.value.hint or "") or "its-rpm" in (refused.value.hint or "")


def test_debians_keys_where_they_are_missing_as_on_ubuntu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keyring = tmp_path / "debian.gpg"
    monkeypatch.setattr(apt_sources, "DEBIAN_KEYRING", str(keyring))
    mirrors = apt_sources.for_suite("bookworm", [])
    with pytest.raises(Refused) as refused:
        image_build.check_keyring(mirrors)
    assert str(keyring) in refused.value.message
    assert "install debian-" in (refused.value.hint or "")
    keyring.touch()
    image_build.check_keyring(mirrors)
    image_build.check_keyring(apt_sources.Mirrors((), None, "this machine's apt"))


def test_a_mirror_of_the_past_is_trusted_where_this_machines_apt_trusts_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "apt.conf").write_text('Acquire::Check-Valid-Until "false";\nDir::Etc::parts "/nonexistent";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    if shutil.which("apt-config") is None:
        pytest.skip("there is no apt here")
    assert image_build._apt_setting("Acquire::Check-Valid-Until") == "false"
    assert '--aptopt=Acquire::Check-Valid-Until "false"' in image_build._apt_options()
    assert image_build._apt_setting("Acquire::Not-Set") is None


class Impatient(Progress):
    """Presses Ctrl-C at the first step."""

    def step(self, text: str) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_ends_mmdebstrap_and_its_children_and_waits_until_it_has_cleaned_up(tmp_path: Path) -> None:
    # The child says that it is there only once it takes signals as a program of its own does.
    script = (
        "trap 'wait; seq 30000 >&2; echo cleaned >$OUT/cleaned; exit 1' TERM\n"
        "sh -c 'echo $$ >$OUT/child; exec sleep 60' & while [ ! -s $OUT/child ]; do sleep 0.01; done\n"
        "echo 'I: working...' >&2; wait"
    )
    with pytest.raises(KeyboardInterrupt):
        image_build._watch(["sh", "-c", script], {**os.environ, "OUT": str(tmp_path)}, "it", Impatient())
    assert (tmp_path / "cleaned").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


def test_what_mmdebstrap_said_is_told() -> None:
    said = [
        "I: fine",
        "Err:1 http://m.example bookworm InRelease",
        "Could not connect to m.example:80",
        "E: consequence",
    ]
    script = "\n".join(f"echo '{line}' >&2" for line in said) + "\nexit 1"
    with pytest.raises(KvmctlError) as error:
        image_build._watch(["sh", "-c", script], dict(os.environ), "debian-12", Progress())
    assert "Err:1 http://m.example bookworm InRelease Could not connect" in error.value.message
    assert "mirror" in (error.value.hint or "")


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "x.qcow2"
    precious.write_text("precious")
    suite = image_build.suite("12")
    planned = image_build.Plan(
        suite, image_build.DEFAULT_SIZE, "cloud", (), apt_sources.for_suite("bookworm", []), tmp_path
    )
    with pytest.raises(UsageProblem, match="is there already"):
        image_build.run(planned, precious)
    assert precious.read_text() == "precious"
