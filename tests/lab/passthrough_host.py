"""An emulated host with an IOMMU and many PCI devices, in which kvmctl passes them on to a guest of its own."""

import base64
import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tests.lab import passthrough_image
from tests.lab.process import CommandFailed, Result, run

_REPOSITORY = Path(__file__).parents[2]

# Devices behind a PCIe root port each, so that each has an IOMMU group of its own. SeaBIOS finds room for the
# I/O ports of about a dozen; NVMe controllers have none, and so can be many.
NICS = 4
NVMES = 30
FIRST_BUS = 2


class PassthroughHost:
    """Runs it: QEMU with an emulated Intel IOMMU. Commands go through the guest agent. Use it in a ``with``.

    Its file system is this machine's, with changes kept in its memory; /var/lib/libvirt is a disk of its own.
    On its buses: 0000:01:01.0 and 0000:01:02.0 (e1000, one IOMMU group, behind a PCI bridge); then ``nics``
    (e1000e) and ``nvmes``, each alone in its group; a USB stick on an xHCI controller of the root bus. It has
    control groups (v2). With ``everything`` also vsocks for its guests, and ``mdev``: a mediated device's UUID.
    """

    def __init__(self, everything: bool = False) -> None:
        self.images = passthrough_image.passthrough(everything)
        self.nics = [f"0000:{FIRST_BUS + index:02x}:00.0" for index in range(NICS)]
        self.nvmes = [f"0000:{FIRST_BUS + NICS + index:02x}:00.0" for index in range(NVMES)]
        self.mdev = "4b20d080-1b54-4048-85b3-a6a62d165c01"
        self.macs = {address: f"52:54:00:aa:00:{index:02x}" for index, address in enumerate(self.nics)}
        self._folder = tempfile.TemporaryDirectory(prefix="kvmctl-passthrough-")
        self._disk = Path(self._folder.name) / "disk.raw"
        self._qemu: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answers: BinaryIO | None = None

    def __enter__(self) -> "PassthroughHost":
        try:
            self._start()
            self._wait_for_agent(600)
            # The first question makes libvirt ask its emulator what it can do.
            self.shell("virsh version", timeout=600)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        self._folder.cleanup()

    def _start(self) -> None:
        place = Path(self._folder.name)
        with self._disk.open("wb") as disk:
            disk.truncate(1 << 30)
        run(["mke2fs", "-q", "-t", "ext4", str(self._disk)])
        # no_timer_check: on a busy machine the emulated timer ticks too late for the kernel's test, and it panics.
        kernel = "console=ttyS0 quiet loglevel=4 intel_iommu=on mitigations=off no_timer_check"
        with (place / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(
                [
                    "qemu-system-x86_64",
                    *("-accel", "tcg,thread=multi", "-machine", "q35,kernel-irqchip=split", "-cpu", "max"),
                    *("-smp", "2", "-m", "2560", "-nodefaults", "-nic", "none", "-display", "none"),
                    *("-kernel", str(self.images.kernel), "-initrd", str(self.images.host), "-append", kernel),
                    *("-serial", f"file:{place / 'console.log'}"),
                    *("-chardev", f"socket,id=agent,path={place / 'agent'},server=on,wait=off"),
                    *self._devices(),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # If pytest is killed nobody else ends it.
                preexec_fn=_die_with_parent,
            )

    def _devices(self) -> list[str]:
        disk = f"file={self._disk},format=raw,if=none,id=disk,cache=unsafe"
        # The firmware of both machines would run what a card has in its ROM; emulated twice over, for a long time.
        no_rom = "romfile="
        found = ["-device", "intel-iommu,intremap=on"]
        found += ["-drive", disk, "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]
        found += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        # remap: there may be several file systems below /, with the same inode numbers.
        found += ["-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"]
        found += ["-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"]
        found += ["-device", "qemu-xhci,id=usb", *_null_drive("stick")]
        found += ["-device", "usb-storage,bus=usb.0,drive=stick,serial=STICK"]
        found += ["-device", "pcie-pci-bridge,id=old,bus=pcie.0,addr=0x0e"]
        for number in (1, 2):
            found += ["-device", f"e1000,bus=old,addr={number},mac=52:54:00:aa:01:0{number},{no_rom}"]
        for index in range(NICS + NVMES):
            slot, function = divmod(index, 8)
            place = f"bus=pcie.0,addr={0x10 + slot:#x}.{function},multifunction=on"
            found += ["-device", f"pcie-root-port,id=port{index},chassis={index + 1},{place}"]
            if index < NICS:
                found += ["-device", f"e1000e,bus=port{index},mac={self.macs[self.nics[index]]},{no_rom}"]
            else:
                found += [*_null_drive(f"n{index}"), "-device", f"nvme,bus=port{index},drive=n{index},serial=N{index}"]
        return found

    def _wait_for_agent(self, patience: float) -> None:
        end = time.monotonic() + patience
        for attempt in itertools.count(1):
            assert self._qemu is not None
            if self._qemu.poll() is not None:
                raise CommandFailed(f"QEMU exited {self._qemu.returncode}\n{self._said()}")
            # ValueError: the rest of an answer that an earlier attempt did not wait for.
            with contextlib.suppress(OSError, ValueError):
                self._connect()
                self._synchronize(attempt)
                return
            if time.monotonic() > end:
                raise CommandFailed(f"the outer host's agent did not answer in {patience:g} s\n{self._said()}")
            time.sleep(0.5)

    def _synchronize(self, number: int) -> None:
        """Read past what the agent answers to earlier attempts, which have waited for it as it started."""
        assert self._socket is not None
        self._socket.settimeout(10)
        request = {"execute": "guest-sync", "arguments": {"id": number}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while json.loads(self._line()).get("return") != number:
            pass

    def _line(self) -> bytes:
        assert self._answers is not None
        line = self._answers.readline()
        if not line:
            raise ConnectionError(f"QEMU has closed the agent's socket\n{self._said()}")
        return line

    def _said(self) -> str:
        place = Path(self._folder.name)
        files = [place / "qemu.log", place / "console.log"]
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in files if path.exists())

    def _disconnect(self) -> None:
        for end in (self._answers, self._socket):
            if end is not None:
                end.close()
        self._answers = self._socket = None

    def _connect(self) -> None:
        self._disconnect()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(Path(self._folder.name) / "agent"))
        self._answers = self._socket.makefile("rb")

    def _ask(self, command: str, patience: float = 300, **arguments: Any) -> Any:
        assert self._socket is not None
        self._socket.settimeout(patience)
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._line())
        if "error" in answer:
            raise CommandFailed(f"{command}: {answer['error']}")
        return answer["return"]

    def run(self, args: Sequence[str], *, check: bool = True, timeout: float = 300) -> Result:
        """Run a program on the outer host."""
        started: dict[str, Any] = {"path": args[0], "arg": list(args[1:]), "capture-output": True}
        environment = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/lab/home",
            "LC_ALL=C.UTF-8",
            f"PYTHONPATH={_REPOSITORY}",
            "PYTHONDONTWRITEBYTECODE=1",
        ]
        pid = self._ask("guest-exec", **started, env=environment)["pid"]
        end = time.monotonic() + timeout
        while not (status := self._ask("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > end:
                raise CommandFailed(f"{shlex.join(args)}\nstill ran after {timeout:g} s\n{self._said()}")
            time.sleep(0.1)
        out, err = (base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
        result = Result(tuple(args), status.get("exitcode", -1), out, err)
        if check and result.returncode != 0:
            raise CommandFailed(f"{shlex.join(args)}\nexited {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def shell(self, script: str, *, check: bool = True, timeout: float = 300) -> str:
        """What a shell script printed on the outer host."""
        return self.run(["/bin/sh", "-c", script], check=check, timeout=timeout).stdout.strip()

    def kvmctl(self, *args: str, check: bool = True, timeout: float = 300) -> Result:
        """Run this repository's kvmctl on the outer host."""
        return self.run([sys.executable, "-m", "kvmctl", *args], check=check, timeout=timeout)

    def pci(self) -> dict[str, dict[str, Any]]:
        """``kvmctl pci list`` by address."""
        return {row["address"]: row for row in self.kvmctl("pci", "list", "-o", "json").json()}

    def drivers(self, addresses: Iterable[str]) -> set[str]:
        """The drivers that the outer host's kernel has bound to these devices; empty text where to one is none."""
        links = " ".join(f"/sys/bus/pci/devices/{address}/driver" for address in addresses)
        return {Path(line).name for line in self.shell(f"for l in {links}; do echo $(readlink $l); done").splitlines()}

    def wait_inside(self, name: str, pattern: str, patience: float = 600) -> re.Match[str]:
        """Wait until the inner guest ``name`` prints a line of its devices that matches ``pattern``."""
        script = f"p=$(virsh ttyconsole {shlex.quote(name)}) && timeout 3 cat $p"
        end = time.monotonic() + patience
        last = ""
        while time.monotonic() < end:
            text = self.shell(script, check=False)
            # The last whole line: what was printed earlier may have waited in the terminal's buffer.
            lines = [line for line in text.splitlines() if re.search(r"INNER .* END", line)]
            last = lines[-1] if lines else text[-500:] or last
            if lines and (match := re.search(pattern, lines[-1])):
                return match
        state = self.shell(f"virsh domstate --reason {shlex.quote(name)}", check=False)
        raise CommandFailed(f"{name} ({state}): no {pattern!r} after {patience:g} s; last seen: {last}")


def _null_drive(name: str) -> list[str]:
    return ["-drive", f"driver=null-co,size=64M,read-zeroes=on,if=none,id={name}"]


def _die_with_parent() -> None:
    import ctypes

    # PR_SET_PDEATHSIG of prctl(2).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.setpgrp()
    # Its two busy CPUs must not slow down the guests of a test beside it.
    os.nice(5)
