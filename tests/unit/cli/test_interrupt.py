"""Ctrl-C and SIGTERM where libvirt does not answer: real processes, and a "libvirtd" that says nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmctl.cli import interrupt
from kvmctl.errors import KvmctlError

# kvmctl as it is, but for how long it waits.
PROGRAM = """\
import sys
from kvmctl.cli import interrupt
interrupt.TELL_AFTER, interrupt.CUT_AFTER, interrupt.LEAVE_AFTER, interrupt._TICK = 0.1, 0.3, 0.3, 0.02
from kvmctl.cli.root import run
sys.exit(run(sys.argv[1:]))
"""
# A main thread that no signal reaches: it waits for a lock of the C library's, as libvirt's own threads may.
STUCK = """\
import ctypes, sys, threading
from kvmctl import connection
from kvmctl.cli import boundary, interrupt
from kvmctl.cli.app import App
interrupt.TELL_AFTER, interrupt.CUT_AFTER, interrupt.LEAVE_AFTER, interrupt._TICK = 0.1, 0.3, 0.3, 0.02

def command():
    connection.opening.append("qemu+tcp://nowhere/system")
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    now = threading.Event()
    threading.Thread(target=lambda: now.wait() and print("stuck", flush=True), daemon=True).start()
    # The other thread gets its turn when this one is out of Python, and not before.
    sys.setswitchinterval(1000)
    now.set()
    lock(mutex)
    return 0

sys.exit(boundary.guarded(App(), [], command))
"""
# What was interrupted has ended, and libvirt does not let go of the connection.
CLOSING = """\
import os, signal, sys, threading
import kvmctl.connection
from kvmctl.cli import boundary
from kvmctl.cli.app import App

class Kept(App):
    def close(self):
        print("closing", flush=True)
        threading.Event().wait()

def command():
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

sys.exit(boundary.guarded(Kept(), [], command))
"""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[tuple[str, threading.Event]]:
    """The URI of somebody who takes connections and never says a word; set when one has come and asked."""
    path, asked = tmp_path / "sock", threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        kept: list[socket.socket] = []

        def take() -> None:
            kept.append(server.accept()[0])
            kept[0].recv(1)
            asked.set()

        threading.Thread(target=take, daemon=True).start()
        yield f"qemu:///system?socket={path}", asked
        for taken in kept:
            taken.close()


def begin(code: str, *arguments: str, keep: tuple[int, ...] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=keep,
    )


def unreachable(error: KvmctlError) -> None:
    pytest.fail(error.message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_waits_for_a_libvirt_that_never_answers(
    silent: tuple[str, threading.Event], number: signal.Signals
) -> None:
    uri, asked = silent
    ours, given = socket.socketpair()
    with ours, given:
        process = begin(PROGRAM, "-c", uri, "info", "x", "-o", "json", keep=(given.fileno(),))
        assert asked.wait(60)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        error = json.loads(stderr)["error"]
        assert (error["code"], uri in error["message"]) == ("interrupted", True)
        # A connection that kvmctl was given, by a shell or a service manager, is not its own to cut.
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)


def test_a_main_thread_that_no_signal_reaches_is_left_behind() -> None:
    process = begin(STUCK)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "does not answer (qemu+tcp://nowhere/system)" in stderr) == (130, True), stderr


def test_ctrl_c_while_the_connection_is_closed_changes_nothing() -> None:
    process = begin(CLOSING)
    assert process.stdout is not None
    assert process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "error: interrupted\n")


def test_nothing_was_begun_where_not_even_the_connection_came_about(silent: tuple[str, threading.Event]) -> None:
    uri, asked = silent
    process = begin(PROGRAM, "-c", uri, "list")
    assert asked.wait(60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "nothing was begun" in stderr, "may still be there" in stderr) == (130, True, False)


def test_what_a_shell_started_in_the_background_goes_on_ignoring_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.Interruptible(pytest.fail, unreachable):
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_gives_back_the_handlers_it_found() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.Interruptible(pytest.fail, unreachable):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
