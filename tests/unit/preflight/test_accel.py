"""KVM or TCG."""

from pathlib import Path

import pytest

from kvmctl.errors import Refused, UsageProblem
from kvmctl.preflight import host_cpu
from kvmctl.preflight.accel import choose_accel
from tests.unit.preflight.hypervisors import capabilities, described, guest

LOCAL = "qemu:///system"
REMOTE = "qemu+ssh://root@far/system"
BOTH = guest("x86_64", "qemu", "kvm")
TCG_ONLY = guest("x86_64", "qemu")


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for this machine's /proc/cpuinfo; without virtualization at first."""
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags : fpu lm hypervisor\n")
    monkeypatch.setattr(host_cpu, "LOCAL", path)
    return path


def test_kvm_with_flag_and_domain_type(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : fpu vmx\n")
    choice = choose_accel(described(LOCAL, capabilities("", BOTH)))
    assert (choice.accel, choice.virt_type, choice.warning) == ("kvm", "kvm", None)


@pytest.mark.usefixtures("cpu")
def test_a_device_without_the_flag_does_not_select_kvm() -> None:
    choice = choose_accel(described(LOCAL, capabilities("", BOTH)))
    assert (choice.accel, choice.virt_type) == ("tcg", "qemu")
    assert choice.warning is not None
    assert "neither vmx nor svm" in choice.warning
    assert "\n" not in choice.warning


def test_the_flag_without_libvirts_kvm(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : svm\n")
    choice = choose_accel(described(LOCAL, capabilities("", TCG_ONLY)))
    assert choice.accel == "tcg"
    assert choice.warning is not None
    assert "/dev/kvm" in choice.warning


@pytest.mark.usefixtures("cpu")
def test_kvm_that_was_asked_for_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match="neither vmx nor svm"):
        choose_accel(described(LOCAL, capabilities("", BOTH)), "kvm")


def test_kvm_that_was_asked_for(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : vmx\n")
    assert choose_accel(described(LOCAL, capabilities("", BOTH)), "kvm", "amd64").accel == "kvm"


def test_tcg_that_was_asked_for_brings_no_warning(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : vmx\n")
    choice = choose_accel(described(LOCAL, capabilities("", BOTH)), "tcg")
    assert (choice.accel, choice.warning) == ("tcg", None)


def test_a_remote_cpu_is_judged_by_what_it_says_not_by_ours(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : vmx\n")
    without = described(REMOTE, capabilities("<feature name='hypervisor'/>", BOTH))
    assert choose_accel(without).accel == "tcg"
    cpu.write_text("processor : 0\nflags : fpu\n")
    listed = described(REMOTE, capabilities("<feature name='vmx'/>", BOTH))
    assert choose_accel(listed).accel == "kvm"
    implied = described(REMOTE, capabilities("", BOTH), "<cpu><feature policy='require' name='svm'/></cpu>")
    assert choose_accel(implied).accel == "kvm"
    disabled = described(REMOTE, capabilities("", BOTH), "<cpu><feature policy='disable' name='svm'/></cpu>")
    assert choose_accel(disabled).accel == "tcg"


def test_another_architecture_is_emulated_without_a_warning(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : vmx\n")
    hypervisor = described(LOCAL, capabilities("", BOTH, guest("aarch64", "qemu")))
    choice = choose_accel(hypervisor, arch="arm64")
    assert (choice.accel, choice.warning) == ("tcg", None)
    with pytest.raises(Refused, match="aarch64"):
        choose_accel(hypervisor, "kvm", "aarch64")


def test_i686_guests_run_on_x86_64_with_kvm(cpu: Path) -> None:
    cpu.write_text("processor : 0\nflags : vmx\n")
    hypervisor = described(LOCAL, capabilities("", guest("i686", "qemu", "kvm")))
    assert choose_accel(hypervisor, arch="i386").accel == "kvm"


def test_arm_has_no_flag_but_kvm_can_be_asked_for(cpu: Path) -> None:
    cpu.write_text("processor : 0\nFeatures : fp asimd\n")
    arm = described(LOCAL, capabilities("", guest("aarch64", "qemu", "kvm"), arch="aarch64"))
    assert choose_accel(arm).accel == "tcg"
    assert "--accel kvm" in (choose_accel(arm).warning or "")
    assert choose_accel(arm, "kvm").accel == "kvm"
    bare = described(LOCAL, capabilities("", guest("aarch64", "qemu"), arch="aarch64"))
    with pytest.raises(Refused):
        choose_accel(bare, "kvm")


@pytest.mark.usefixtures("cpu")
def test_no_emulator() -> None:
    with pytest.raises(Refused, match="no emulator for riscv64"):
        choose_accel(described(LOCAL, capabilities("", BOTH)), arch="riscv64")


@pytest.mark.usefixtures("cpu")
def test_nonsense() -> None:
    with pytest.raises(UsageProblem):
        choose_accel(described(LOCAL, capabilities("", BOTH)), "fast")
