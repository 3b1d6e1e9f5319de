"""Whether a CPU says it can virtualize, from the text of /proc/cpuinfo alone."""

import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model.names import harmless
from kvmctl.preflight.check import Check

Flag = Literal["vmx", "svm"]

# Linux itself writes about 1.5 KiB a processor and knows at most 8192 of them (NR_CPUS of x86).
LARGEST = 64 * 1024 * 1024
LOCAL = Path("/proc/cpuinfo")
# The vendors whose processors call it SVM.
_AMD = ("AuthenticAMD", "HygonGenuine")


class CpuInfo(NamedTuple):
    """What a cpuinfo text says.

    ``flag`` is ``vmx`` (Intel) or ``svm`` (AMD) where at least one processor has it. ``processors`` are
    all, ``with_flags`` those that have a ``flags`` field, ``able`` those whose field holds the flag.
    ``vendor`` and ``model`` are the first processor's words, harmless to a terminal.
    """

    vendor: str | None
    model: str | None
    flag: Flag | None
    processors: int
    with_flags: int
    able: int
    hypervisor: bool
    other_arch: str | None

    def as_dict(self) -> dict[str, str | None]:
        """``{"vendor", "model", "flag"}``."""
        return {"vendor": self.vendor, "model": self.model, "flag": self.flag}


def parse(text: str) -> CpuInfo:
    """Read a cpuinfo text; anything at all is read without an error.

    Only a field whose name is exactly ``flags`` counts, and in it only whole words: ``vmx flags``,
    ``Features`` and ``nvmx`` do not.
    """
    first: dict[str, str] = {}
    flag_sets: list[frozenset[str]] = []
    processors = 0
    for line in text.split("\n"):
        key, colon, value = (part.strip(" \t\r") for part in line.partition(":"))
        if not colon:
            continue
        first.setdefault(key, value)
        if key == "processor" or re.fullmatch(r"processor \d+", key):
            processors += 1
        elif key == "flags":
            # Only what the kernel separates words by: str.split() would also split at a no-break space.
            flag_sets.append(frozenset(re.split(r"[ \t]+", value)))
    vendor = first.get("vendor_id") or None
    flag = _flag(flag_sets, vendor)
    return CpuInfo(
        vendor=_shown(vendor),
        model=_shown(first.get("model name") or first.get("cpu model") or first.get("cpu") or first.get("Model")),
        flag=flag,
        processors=max(processors, len(flag_sets)),
        with_flags=len(flag_sets),
        able=sum(flag in words for words in flag_sets) if flag else 0,
        hypervisor=any("hypervisor" in words for words in flag_sets),
        other_arch=None if flag_sets else _other_arch(first),
    )


def _flag(flag_sets: list[frozenset[str]], vendor: str | None) -> Flag | None:
    found: set[Flag] = {flag for words in flag_sets for flag in ("vmx", "svm") if flag in words}
    if len(found) > 1:
        return "svm" if vendor in _AMD else "vmx"
    return next(iter(found), None)


def _other_arch(first: dict[str, str]) -> str | None:
    if "Features" in first or "CPU implementer" in first:
        return "ARM"
    if "features" in first and first.get("vendor_id", "").startswith("IBM"):
        return "s390"
    if "isa" in first:
        return "RISC-V"
    if "POWER" in first.get("cpu", ""):
        return "POWER"
    return None


def _shown(text: str | None) -> str | None:
    return harmless(text[:200]) if text else None


def read_text(source: str) -> str:
    """The text of the file ``source``, or of standard input for ``-``.

    Raises NotFound where there is none, UsageProblem where it cannot be read or is no text.
    """
    shown = harmless(source) or "''"
    try:
        if source == "-":
            data = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise NotFound(f"no file {shown}", "copy one with: ssh HOST cat /proc/cpuinfo > FILE") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageProblem(f"cannot read {shown}: {reason}", "give a copy of a machine's /proc/cpuinfo") from None
    if len(data) > LARGEST:
        raise UsageProblem(f"{shown} is larger than 64 MiB: that is no /proc/cpuinfo")
    if b"\0" in data:
        raise UsageProblem(f"{shown} is no text file", "give a copy of a machine's /proc/cpuinfo")
    return data.decode("utf-8-sig", errors="replace")


def check(info: CpuInfo) -> Check:
    """The check ``cpu-flag``: fail where no processor says it can, warn where only some do."""
    if info.processors == 0:
        return Check("cpu-flag", "fail", "this is no cpuinfo: it lists no processor", "give /proc/cpuinfo of a machine")
    if info.flag is None:
        return Check("cpu-flag", "fail", _why_not(info), _remedy(info))
    if info.able < info.processors:
        return Check(
            "cpu-flag",
            "warn",
            f"only {info.able} of {info.processors} processors have {info.flag}: KVM needs it on each of them",
            "switch virtualization on for all processors in the firmware setup, or the others off",
        )
    return Check("cpu-flag", "ok", f"{info.flag} in the flags of {_all(info.processors)}")


def _all(processors: int) -> str:
    return "the processor" if processors == 1 else f"all {processors} processors"


def _why_not(info: CpuInfo) -> str:
    if info.other_arch:
        return f"this is a cpuinfo of {info.other_arch}: it has no flags field, vmx and svm are flags of x86"
    if info.with_flags == 0:
        return "no processor has a flags field"
    if info.hypervisor:
        return "neither vmx nor svm in the flags; this machine is itself a VM (flag hypervisor)"
    return "neither vmx nor svm in the flags"


def _remedy(info: CpuInfo) -> str | None:
    if info.other_arch:
        return "whether KVM works there is for /dev/kvm to say: run 'kvmctl host check' on that machine"
    if info.with_flags == 0:
        return "give the whole of /proc/cpuinfo"
    if info.hypervisor:
        module = "kvm_amd" if info.vendor in _AMD else "kvm_intel"
        return (
            f"allow nested virtualization on the machine this VM runs on (there: modprobe -r {module} && "
            f"modprobe {module} nested=1) and give the VM the CPU mode host-passthrough"
        )
    name = "SVM (AMD-V)" if info.vendor in _AMD else "VT-x (Intel Virtualization Technology)"
    return f"switch {name} on in the machine's firmware setup and power it off and on"
