"""Which hypervisor kvmctl reaches, and what it says where it reaches none."""

import pytest

from tests.lab.hosts import Host


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
