"""Which hypervisor kvmctl reaches, and what it says where it reaches none."""

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.lab import images
from tests.lab.hosts import Host, wait_until
from tests.lab.lab import Lab


def test_version_over_each_transport(host_a: Host, host_b: Host) -> None:
    host_b.start_sshd()
    for host, uri in (
        (host_a, host_a.uri),
        (host_a, host_a.tcp_uri),
        (host_a, host_b.tcp_uri),
        (host_a, host_b.ssh_uri),
        (host_b, host_a.tcp_uri),
    ):
        told = host.kvmctl("-c", uri, "version", "-o", "json").json()
        assert told["uri"] == uri
        assert told["hypervisor"] == "QEMU"
        assert told["libvirt"] == told["libvirt_client"]


def test_the_default_is_the_environments(host_a: Host, host_b: Host) -> None:
    assert host_a.kvmctl("version", "-o", "json").json()["uri"] == host_a.uri
    other = host_a.kvmctl("version", "-o", "json", env={"LIBVIRT_DEFAULT_URI": host_b.tcp_uri})
    assert other.json()["uri"] == host_b.tcp_uri


def test_on_the_host_itself_system_is_found_without_a_setting(host_a: Host) -> None:
    told = host_a.kvmctl("version", "-o", "json", local=True, env={"LIBVIRT_DEFAULT_URI": None}).json()
    assert told["uri"] == "qemu:///system"


def test_libvirts_own_client_configuration_is_heeded(host_a: Host, host_b: Host) -> None:
    file = "/etc/libvirt/libvirt.conf"
    text = f'uri_aliases = [ "b={host_b.tcp_uri}" ]\nuri_default = "test:///default"\n'
    before = host_a.run(["sh", "-c", f"cat {file} 2>/dev/null"], check=False).stdout
    host_a.run(["tee", file], input=text)
    try:
        unset = {"LIBVIRT_DEFAULT_URI": None}
        assert host_a.kvmctl("list", "-o", "name", local=True, env=unset).stdout == "test\n"
        assert host_a.kvmctl("-c", "b", "version", "-o", "json", local=True).json()["uri"] == host_b.tcp_uri
        ours = host_a.kvmctl("-c", "qemu:///system", "version", "-o", "json", local=True).json()
        assert ours["uri"] == "qemu:///system"
    finally:
        host_a.run(["tee", file], input=before)


def test_hosts_differ_and_hide_their_files(host_a: Host, host_b: Host) -> None:
    uuids = {host.run(["grep", "host_uuid", "/etc/libvirt/libvirtd.conf"]).stdout for host in (host_a, host_b)}
    assert len(uuids) == 2
    host_a.run(["touch", "/var/lib/libvirt/images/mine"])
    assert host_a.files() == {"/var/lib/libvirt/images/mine"}
    assert host_b.files() == set()
    assert host_a.client(["ls", "-A", "/var/lib/libvirt"]).stdout == ""
    host_a.run(["sh", "-c", f"echo both > {host_a.shared}/file"])
    assert host_b.run(["cat", f"{host_b.shared}/file"]).stdout == "both\n"


def test_version_of_a_dead_libvirtd_still_tells_the_clients(host_a: Host) -> None:
    host_a.kill_libvirtd()
    told = host_a.kvmctl("version", "-o", "json").json()
    assert told["libvirt"] is None and told["libvirt_client"]
    host_a.start_libvirtd()
    assert host_a.kvmctl("version", "-o", "json").json()["libvirt"] == told["libvirt_client"]


@pytest.mark.parametrize("uri", ["qemu:///system?command=/bin/sh", "qemu+ssh://-oProxyCommand=x/system", "-x", ""])
def test_dangerous_uris_are_usage_errors(host_a: Host, uri: str) -> None:
    failed = host_a.kvmctl(f"--connect={uri}", "version", "-o", "json", check=False)
    assert failed.returncode == 2, failed
    assert failed.error()["code"] == "usage"


def _refused(host: Host, *arguments: str) -> dict[str, str]:
    failed = host.kvmctl(*arguments, "-o", "json", check=False, timeout=60)
    assert failed.returncode == 5, failed
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    error = failed.error()
    assert error["code"] == "connection"
    assert error["hint"]
    return error


def test_each_way_of_not_reaching_a_hypervisor_is_exit_5_and_names_the_uri(
    lab: Lab, host_a: Host, host_b: Host
) -> None:
    host_b.kill_libvirtd()
    for uri in (
        host_b.uri,
        host_b.tcp_uri,
        "qemu:///system",
        "qemu:///system?socket=/nonexistent/libvirt-sock",
        f"qemu:///system?socket={lab.root}/hosts",
        "qemu+tcp://no-such-host.invalid/system",
        "qemu+tls://10.77.0.2/system",
        "qemu+ssh://root@10.77.0.254/system",
        "nosuchdriver:///system",
        "not a uri",
    ):
        assert uri in _refused(host_a, "-c", uri, "list")["message"]


def test_a_client_key_that_is_not_accepted(host_a: Host, host_b: Host) -> None:
    host_b.start_sshd()
    # Nobody's password is asked for, as nobody could type it.
    error = _refused(host_a, "-c", f"qemu+ssh://nobody@{host_b.address}/system", "list")
    assert host_b.address in error["message"]


def test_people_get_one_line_and_a_way_out(host_a: Host) -> None:
    failed = host_a.kvmctl("-c", "qemu:///system", "list", check=False)
    assert failed.returncode == 5
    message, hint = failed.stderr.splitlines()
    assert message.startswith("error: ") and "qemu:///system" in message
    assert "kvmctl host setup" in hint


def _clients(host: Host) -> int:
    """How many connections libvirtd has, as it says itself."""
    return host.run(["virt-admin", "-q", "client-list", "libvirtd"]).stdout.count("unix")


@pytest.fixture
def waiting(host_a: Host, tiny: images.Tiny, vm_name: Callable[[str], str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A kvmctl that waits for an agent that will never come."""
    name = vm_name("wait")
    host_a.kvmctl(
        *("create", name, "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--memory", "160M"),
        *("--cmdline", f"{tiny.cmdline} lab.noagent", "--net", "none", "--graphics", "none"),
    )
    others = _clients(host_a)
    with subprocess.Popen(
        host_a.kvmctl_command("wait", name, "--for", "agent", "-o", "json"),
        env=host_a.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            wait_until(lambda: _clients(host_a) > others, "kvmctl's connection")
            yield process
        finally:
            process.kill()


def test_a_libvirtd_that_dies_ends_a_wait_with_exit_5(host_a: Host, waiting: "subprocess.Popen[bytes]") -> None:
    host_a.kill_libvirtd()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 5, err
    assert out == b"" and b"Traceback" not in err
    assert host_a.uri.encode() in err


def test_ctrl_c_ends_a_wait_with_exit_130(waiting: "subprocess.Popen[bytes]") -> None:
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, err
    assert out == b"" and b"Traceback" not in err


def test_what_another_tool_named_dangerously_is_listed_harmlessly(host_a: Host) -> None:
    evil = "x\u009b2J\u202e\U000e0041"
    host_a.conn.defineXML(
        f"<domain type='qemu'><name>{evil}</name><title>\u009b31m</title><memory>65536</memory>"
        "<os><type>hvm</type></os></domain>"
    )
    for output in ("table", "wide", "name"):
        shown = host_a.kvmctl("list", "-o", output).stdout
        assert not set(shown) & {"\u009b", "\u202e", "\U000e0041"}
    row = host_a.kvmctl("list", "-o", "json").json()[0]
    assert row["name"] == evil
    # What -o name prints can be given back.
    assert (
        host_a.kvmctl("info", host_a.kvmctl("list", "-o", "name").stdout.strip(), "-o", "json").json()["name"] == evil
    )
