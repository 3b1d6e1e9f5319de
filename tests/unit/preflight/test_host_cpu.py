"""cpuinfo texts, real ones and hostile ones."""

import os
from pathlib import Path

import pytest

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.preflight import host_cpu

INTEL = """processor\t: {n}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 106
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu vme de pse tsc msr {flag} ssse3 lm
vmx flags\t: vnmi preemption_timer invvpid
bugs\t\t: spectre_v1
"""
AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu lm svm extapic npt svm_lock
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes vmx svm
CPU implementer\t: 0x41
CPU architecture: 8
"""
S390 = """vendor_id       : IBM/S390
# processors    : 2
features\t: esan3 zarch stfle sie vmx
processor 0: version = 00,  identification = 0133E8,  machine = 2964
processor 1: version = 00,  identification = 0133E8,  machine = 2964
"""


def test_an_intel_server() -> None:
    info = host_cpu.parse("\n".join(INTEL.format(n=n, flag="vmx smx") for n in range(4)))
    assert info.as_dict() == {
        "vendor": "GenuineIntel",
        "model": "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz",
        "flag": "vmx",
    }
    assert (info.processors, info.able) == (4, 4)
    assert host_cpu.check(info).level == "ok"


def test_an_amd_server() -> None:
    info = host_cpu.parse(AMD)
    assert info.flag == "svm"
    assert info.vendor == "AuthenticAMD"
    assert host_cpu.check(info).level == "ok"


@pytest.mark.parametrize(
    "text",
    [
        "flags : fpu nvmx lm\n",
        "flags : fpu vmxx lm\n",
        "flags : fpu vmx_foo lm\n",
        "flags : fpu svm_lock nrip_save\n",
        "flags : fpu VMX lm\n",
        "flags : fpu,vmx,lm\n",
        "flags : fpu\u00a0vmx lm\n",
        "flags : fpu\x85vmx\n",
        "vmx flags : vmx svm\n",
        "Flags : vmx\n",
        "xflags : vmx\n",
        "power flags : vmx\n",
        "flags vmx\n",
        "flags\nvmx : vmx\n",
        "model name : flags : vmx\n",
        "model name : Fake\x0bflags : vmx\n",
        "# flags : vmx\n",
        "vmx\nsvm\n",
        "bugs : vmx svm\nflags : fpu\n",
        "flags :\n",
        "flags : fpu\n vmx\n",
        ARM,
        S390,
        "",
        "\n\n\n",
        ":::\n:\n: vmx\n",
    ],
)
def test_no_flag(text: str) -> None:
    info = host_cpu.parse(text)
    assert info.flag is None
    assert host_cpu.check(info).level == "fail"


@pytest.mark.parametrize(
    "text",
    [
        "flags : vmx\n",
        "flags:vmx",
        "flags\t\t:\tfpu\tvmx\tlm",
        "flags : vmx fpu\r\n",
        "flags : fpu vmx\r\n",
        "  flags   :   fpu    vmx   \n",
        "processor : 0\nflags : fpu vmx\nprocessor : 1\nflags : fpu vmx\n",
    ],
)
def test_the_flag(text: str) -> None:
    info = host_cpu.parse(text)
    assert info.flag == "vmx"
    assert info.able == info.processors
    assert host_cpu.check(info).level == "ok"


def test_only_some_processors() -> None:
    info = host_cpu.parse("\n".join(INTEL.format(n=n, flag="vmx" if n % 2 else "smx") for n in range(4)))
    found = host_cpu.check(info)
    assert info.flag == "vmx"
    assert found.level == "warn"
    assert "2 of 4" in found.detail


def test_a_processor_without_flags_field_counts_as_unable() -> None:
    info = host_cpu.parse("processor : 0\nflags : vmx\n\nprocessor : 1\n")
    assert host_cpu.check(info).level == "warn"
    assert "1 of 2" in host_cpu.check(info).detail


def test_both_flags_follow_the_vendor() -> None:
    assert host_cpu.parse("flags : svm vmx\n").flag == "vmx"
    assert host_cpu.parse("vendor_id : AuthenticAMD\nflags : vmx svm\n").flag == "svm"


def test_other_architectures_are_named() -> None:
    assert host_cpu.parse(ARM).other_arch == "ARM"
    assert host_cpu.parse(S390).other_arch == "s390"
    assert host_cpu.parse(S390).processors == 2
    assert host_cpu.parse("processor : 0\nisa : rv64imafdch\n").other_arch == "RISC-V"
    assert host_cpu.parse("processor : 0\ncpu : POWER9, altivec supported\n").other_arch == "POWER"
    assert "ARM" in host_cpu.check(host_cpu.parse(ARM)).detail


def test_remedies_differ() -> None:
    bios = host_cpu.check(host_cpu.parse(INTEL.format(n=0, flag="smx")))
    assert bios.hint is not None
    assert "VT-x" in bios.hint
    nested = host_cpu.check(host_cpu.parse(INTEL.format(n=0, flag="hypervisor")))
    assert nested.hint is not None
    assert "nested=1" in nested.hint
    assert "kvm_intel" in nested.hint
    amd = host_cpu.check(host_cpu.parse("vendor_id : AuthenticAMD\nflags : fpu hypervisor\nprocessor : 0\n"))
    assert amd.hint is not None
    assert "kvm_amd" in amd.hint


def test_hostile_names_are_harmless() -> None:
    info = host_cpu.parse("vendor_id : \x1b[2J\nmodel name : " + "A" * 5000 + "\nflags : vmx\n")
    assert info.vendor == "\\x1b[2J"
    assert info.model is not None
    assert len(info.model) == 200


def test_long_lines_are_read_in_linear_time() -> None:
    info = host_cpu.parse(" " * 3_000_000 + "\n" + "a" * 3_000_000 + "\nflags : " + " \t" * 1_000_000 + "vmx\n")
    assert info.flag == "vmx"


def test_reading_files(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"\xef\xbb\xbfflags : vmx\n")
    assert host_cpu.parse(host_cpu.read_text(str(good))).flag == "vmx"
    latin = tmp_path / "latin"
    latin.write_bytes(b"model name : \xff\xfe\nflags : vmx\n")
    assert host_cpu.parse(host_cpu.read_text(str(latin))).flag == "vmx"
    with pytest.raises(NotFound):
        host_cpu.read_text(str(tmp_path / "missing"))
    with pytest.raises(UsageProblem):
        host_cpu.read_text(str(tmp_path))
    with pytest.raises(UsageProblem):
        host_cpu.read_text(str(good / "below"))
    with pytest.raises(UsageProblem):
        host_cpu.read_text("a\0b")
    binary = tmp_path / "binary"
    binary.write_bytes(b"flags : vmx\0\n")
    with pytest.raises(UsageProblem, match="no text"):
        host_cpu.read_text(str(binary))
    with pytest.raises(UsageProblem, match="no text"):
        host_cpu.read_text("/bin/true")


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cpu, "LARGEST", 100)
    huge = tmp_path / "huge"
    huge.write_text("flags : vmx\n" * 10)
    with pytest.raises(UsageProblem, match="64 MiB"):
        host_cpu.read_text(str(huge))


def test_this_machines_own_cpuinfo_is_read() -> None:
    info = host_cpu.parse(host_cpu.read_text("/proc/cpuinfo"))
    assert info.processors >= len(os.sched_getaffinity(0))
