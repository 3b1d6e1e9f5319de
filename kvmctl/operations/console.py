"""A VM's serial console, joined to this terminal."""

import contextlib
import os
import select
import termios
import threading
import tty
from collections.abc import Callable, Iterator

import libvirt

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import Conflict, ConnectionFailed
from kvmctl.model.state import ACTIVE
from kvmctl.operations.lifecycle import state_of
from kvmctl.preflight.asking import Asking

# Ctrl-] leaves, as in telnet and virsh.
ESCAPE = b"\x1d"
_MOST = 64 * 1024
_WOULD_BLOCK = -2
# Seconds that libvirt gets to end it.
_PATIENCE = 1.0


def attach(
    hypervisor: Hypervisor, name: str, *, force: bool, opened: Callable[[str], object], keys: int = 0, screen: int = 1
) -> None:
    """Join the terminal (``keys`` in, ``screen`` out) to the console until Ctrl-] or its end.

    ``opened`` is called with the VM's name once it is open. The connection needs ``events=True``. Raises
    Conflict where the VM is off, has no console, or somebody else has it (``force`` throws them out).
    """
    domain = hypervisor.find(name)
    with translated(hypervisor.uri):
        shown, state = domain.name(), state_of(domain)
        if state not in ACTIVE:
            raise Conflict(f"{shown} is {state}, so its console is silent", f"'kvmctl start {shown}' first")
        stream = hypervisor.conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
        flags = libvirt.VIR_DOMAIN_CONSOLE_FORCE if force else libvirt.VIR_DOMAIN_CONSOLE_SAFE
        try:
            domain.openConsole(None, stream, flags)
        except libvirt.libvirtError as error:
            message = error.get_error_message() or ""
            if "Active console session exists" in message:
                raise Conflict(f"somebody else has the console of {shown}", "--force throws them out") from error
            if "cannot find" in message or "not using a PTY" in message:
                raise Conflict(f"{shown} has no serial console", "'kvmctl view' shows its screen") from error
            raise
        opened(shown)
        with _Joined(hypervisor, stream, screen) as joined, _raw(keys):
            joined.run(keys)


class _Joined:
    """The stream's output is written by libvirt's event thread, its input by the thread that runs this."""

    def __init__(self, hypervisor: Hypervisor, stream: libvirt.virStream, screen: int) -> None:
        self._hypervisor = hypervisor
        self._stream = stream
        self._screen = screen
        self._over = threading.Event()
        self._woken, self._wake = os.pipe()

    def __enter__(self) -> "_Joined":
        events = libvirt.VIR_STREAM_EVENT_READABLE | libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
        self._stream.eventAddCallback(events, self._arrived, None)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.eventRemoveCallback()
        # libvirt answers that, and may have stopped answering: whoever leaves does not wait for it.
        Asking(self._abort).ended(_PATIENCE)

    def _abort(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.abort()

    def _arrived(self, stream: libvirt.virStream, events: int, _opaque: object) -> None:
        try:
            while events & libvirt.VIR_STREAM_EVENT_READABLE:
                data = stream.recv(_MOST)
                if data == _WOULD_BLOCK:
                    return
                if not data:
                    break
                os.write(self._screen, data)
        except (libvirt.libvirtError, OSError):
            pass
        self._over.set()
        os.write(self._wake, b"x")

    def run(self, keys: int) -> None:
        """Pass keys on until Ctrl-], the end of the keys or that of the console."""
        while not self._over.is_set():
            ready = select.select([keys, self._woken], [], [], 1.0)[0]
            if not self._hypervisor.conn.isAlive():
                raise ConnectionFailed(f"the connection to {self._hypervisor.uri} was lost")
            if keys not in ready:
                continue
            data = os.read(keys, 4096)
            before, escape, _ = data.partition(ESCAPE)
            self._send(before)
            if escape or not data:
                return

    def _send(self, data: bytes) -> None:
        while data and not self._over.is_set():
            sent = self._stream.send(data)
            if sent == _WOULD_BLOCK:
                self._over.wait(0.02)
                continue
            data = data[sent:]


@contextlib.contextmanager
def _raw(keys: int) -> Iterator[None]:
    """The terminal passes each key on as it is, and is itself again afterwards."""
    if not os.isatty(keys):
        yield
        return
    before = termios.tcgetattr(keys)
    try:
        # Not with tty's own TCSAFLUSH: what was typed already is meant for the guest.
        tty.setraw(keys, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
