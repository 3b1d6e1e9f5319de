"""exec, cp, ssh, screenshot, console: what happens inside the guest is asked in the guest."""

import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.guests import AGENT, NAT, booted, define
from tests.lab.hosts import Host

Named = Callable[[str], str]
VGA = "<graphics type='vnc' listen='127.0.0.1'/><video><model type='vga'/></video>"


def test_exec_passes_everything_on(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = booted(host_a, tiny, vm_name("exec"))
    uname = host_a.kvmctl("exec", name, "--", "uname", "-a").stdout
    assert re.match(r"Linux \S+ [0-9.]+", uname)
    both = host_a.kvmctl("exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (both.returncode, both.stdout, both.stderr) == (7, "out\n", "err\n")
    assert host_a.kvmctl("exec", name, "--", "no-such", check=False).returncode == 127
    assert host_a.kvmctl("exec", name, "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    assert host_a.kvmctl("exec", name, "-e", "A=b c", "-w", "/tmp", "--", "sh", "-c", "pwd; echo $A").stdout == (
        "/tmp\nb c\n"
    )

    data = os.urandom(300_000)
    (Path(host_a.folder) / "random").write_bytes(data)
    with (Path(host_a.folder) / "random").open("rb") as stream:
        echoed = subprocess.run(
            host_a.kvmctl_command("exec", name, "--", "cat"),
            env=host_a.environment(),
            stdin=stream,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    assert echoed == data
    # More than libvirt's message and the agent's own buffer would take at once.
    long = host_a.kvmctl("exec", name, "--", "sh", "-c", "seq 1 1000000").stdout
    assert (
        hashlib.md5(long.encode()).hexdigest()
        == hashlib.md5("".join(f"{n}\n" for n in range(1, 1000001)).encode()).hexdigest()
    )

    row = host_a.kvmctl("exec", name, "-o", "json", "--", "sh", "-c", "printf '\\377'; exit 3", check=False)
    assert row.returncode == 3
    found = row.json()
    assert (found["exit_code"], found["stdout"], found["encoding"]) == (3, "/w==", "base64")
    assert host_a.kvmctl("exec", name, "--", "ls", "-A", "/tmp").stdout.count(".kvmctl-") == 1


def test_exec_streams_and_does_not_wait_for_its_input_to_end(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = booted(host_a, tiny, vm_name("stream"))
    with subprocess.Popen(
        host_a.kvmctl_command("exec", name, "--", "cat"),
        env=host_a.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()
        assert process.wait(60) == 0
    with subprocess.Popen(
        host_a.kvmctl_command("exec", name, "--", "echo", "early"),
        env=host_a.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.wait(60) == 0


def test_exec_ends_what_it_started_on_timeout_and_interrupt(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    name = booted(host_a, tiny, vm_name("end"))
    script = "sleep 1234 & sleep 1235"
    late = host_a.kvmctl("exec", name, "--timeout", "2s", "--", "sh", "-c", script, check=False)
    assert late.returncode == 6
    with subprocess.Popen(
        host_a.kvmctl_command("exec", name, "--", "sh", "-c", f"echo on; {script}"),
        env=host_a.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    # The kill gives two seconds for a polite end.
    gone = "while ps | grep 'sleep 12[3][45]'; do sleep 0.2; done; ls -A /tmp | grep -c '[.]kvmctl-'"
    left = host_a.kvmctl("exec", name, "--timeout", "60s", "--", "sh", "-c", gone)
    assert left.stdout.splitlines()[-1] == "1"

    # Where nobody hears that it shall end, it is named.
    with subprocess.Popen(
        host_a.kvmctl_command("exec", name, "--", "sh", "-c", "echo $$; exec sleep 1236"),
        env=host_a.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as hung:
        assert hung.stdout is not None
        number = hung.stdout.readline().strip()
        with host_a.hanging_libvirtd():
            hung.send_signal(signal.SIGTERM)
            _, said = hung.communicate(timeout=60)
    assert (hung.returncode, f"end process {number} in the guest {name}" in said) == (130, True), said
    assert "sleep" in host_a.kvmctl("exec", name, "--", "cat", f"/proc/{number}/cmdline").stdout


def test_exec_says_why_it_cannot(host_a: Host, tiny: images.Tiny, vm_name: Named) -> None:
    off = define(host_a, tiny, vm_name("off"))
    assert "start" in host_a.kvmctl("exec", off, "-o", "json", "--", "true", check=False).error()["hint"]
    bare = define(host_a, tiny, vm_name("bare"), "")
    host_a.kvmctl("start", bare)
    refused = host_a.kvmctl("exec", bare, "--", "true", check=False)
    assert (refused.returncode, "no channel" in refused.stderr) == (4, True)
    host_a.kvmctl("destroy", bare)
    silent = define(host_a, tiny, vm_name("silent"), AGENT, "lab.noagent")
    host_a.kvmctl("start", silent)
    refused = host_a.kvmctl("exec", silent, "--", "true", check=False)
    assert (refused.returncode, "not connected" in refused.stderr) == (4, True)
    assert host_a.kvmctl("exec", silent, check=False).returncode == 2


def test_files_go_in_and_out(host_a: Host, tiny: images.Tiny, vm_name: Named, tmp_path: Path) -> None:
    name = booted(host_a, tiny, vm_name("cp"))
    source = tmp_path / "data.bin"
    source.write_bytes(os.urandom(400_000))
    source.chmod(0o640)
    row = host_a.kvmctl("cp", str(source), f"{name}:/tmp/", "-o", "json").json()
    assert (row["destination"], row["size_bytes"]) == (f"{name}:/tmp/data.bin", 400_000)
    inside = host_a.kvmctl("exec", name, "--", "sh", "-c", "md5sum < /tmp/data.bin; stat -c %a /tmp/data.bin").stdout
    assert inside.split() == [hashlib.md5(source.read_bytes()).hexdigest(), "-", "640"]
    host_a.kvmctl("cp", f"{name}:/tmp/data.bin", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o640
    assert host_a.kvmctl("cp", f"{name}:/proc/version", "-").stdout.startswith("Linux version")
    for wrong, code in (
        ((f"{name}:/tmp", str(tmp_path / "x")), 2),
        ((f"{name}:/not/there", str(tmp_path / "x")), 3),
        ((str(source), f"{name}:/not/there/x"), 3),
        ((str(tmp_path), f"{name}:/tmp/x"), 2),
        ((f"{name}:relative", "x"), 2),
        (("a", "b"), 2),
    ):
        assert host_a.kvmctl("cp", *wrong, check=False).returncode == code, wrong
    assert not (tmp_path / "x").exists()
    assert "kvmctl-" not in host_a.kvmctl("exec", name, "--", "ls", "/tmp").stdout


def test_ssh_logs_in(host_a: Host, tiny: images.Tiny, vm_name: Named, tmp_path: Path) -> None:
    host_a.start_default_network()
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text().split()[1]
    name = define(host_a, tiny, vm_name("ssh"), AGENT + NAT, f"lab.key={public}")
    host_a.kvmctl("start", name, "--wait", "ssh")
    home = {"HOME": str(tmp_path)}
    done = host_a.kvmctl(
        "ssh", name, "-l", "root", "-i", str(key), "--", "cat /proc/version; exit 9", check=False, env=home
    )
    assert (done.returncode, done.stdout.startswith("Linux version")) == (9, True), done.stderr
    assert host_a.kvmctl("ssh", name, "-l", "-oProxyCommand=x", check=False).returncode == 2


def test_a_picture_of_the_screen(host_a: Host, tiny: images.Tiny, vm_name: Named, tmp_path: Path) -> None:
    name = define(host_a, tiny, vm_name("screen"), VGA)
    path = tmp_path / "screen.png"
    assert host_a.kvmctl("screenshot", name, str(path), check=False).returncode == 4
    host_a.kvmctl("start", name)
    row = host_a.kvmctl("screenshot", name, str(path), "-o", "json").json()
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (row["width"] >= 640, row["size_bytes"]) == (True, path.stat().st_size)
    piped = host_a.kvmctl("screenshot", name, "-")
    assert piped.stdout_bytes.startswith(b"\x89PNG")
    assert host_a.kvmctl("screenshot", name, str(tmp_path / "x.gif"), check=False).returncode == 2
    assert host_a.kvmctl("screenshot", name, "/not/there/x.png", check=False).returncode == 1
    address = host_a.kvmctl("view", name, "-o", "json").json()["address"]
    assert re.fullmatch(r"vnc://127\.0\.0\.1:59\d\d", address)


def test_the_console_is_joined_and_left(
    host_a: Host, tiny: images.Tiny, vm_name: Named, console: Callable[[Host, str], Guest]
) -> None:
    name = booted(host_a, tiny, vm_name("tty"))
    # The agent answers before the console's shell does.
    console(host_a, name).ready().close()
    assert host_a.kvmctl("console", name, check=False).returncode == 2
    process, terminal = pty.fork()
    if process == 0:
        command = host_a.kvmctl_command("console", name)
        os.execvpe(command[0], command, host_a.environment())
    _until(terminal, "Ctrl-]")
    os.write(terminal, b"\necho $((6*7))-here\n")
    _until(terminal, "42-here")
    os.write(terminal, b"\x1d")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.close(terminal)


def _until(terminal: int, text: str) -> None:
    seen = ""
    end = time.monotonic() + 60
    while text not in seen:
        assert select.select([terminal], [], [], end - time.monotonic())[0], seen
        seen += os.read(terminal, 4096).decode("utf-8", "replace")
