"""Copies of a real Debian: each a machine of its own, inside and on the network."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.hosts import Host

IDENTITY = (
    "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2;"
    " cat /sys/class/net/e*/address; ip -4 -o addr show scope global | awk '{print $4}'"
)

RSA = "/etc/ssh/ssh_host_rsa_key"


def identity(host: Host, vm: str) -> list[str]:
    """Host name, machine-id, host key, MAC and address, as the guest itself says."""
    found = host.kvmctl("exec", vm, "--", "sh", "-c", IDENTITY, timeout=120).stdout.split()
    assert len(found) == 5, found
    return found


@pytest.mark.full
@pytest.mark.usefixtures("leaves_nothing")
def test_copies_of_a_real_debian_are_machines_of_their_own(
    host_a: Host, debian: Path, tmp_path: Path, vm_name: Callable[[str], str]
) -> None:
    vm, fork, pair = vm_name("deb"), vm_name("fork"), vm_name("pair")
    host_a.start_default_network()
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    image = host_a.kvmctl("image", "import", str(debian), "--name", "deb-copies", "-o", "json", timeout=300).json()
    size = ["--memory", "512M", "--vcpus", "1", "--net", "nat", "--graphics", "none"]
    login = ["--user", "ann", "--ssh-key", f"{key}.pub"]
    host_a.kvmctl(
        "create", vm, "--image", image["name"], *size, *login, "--wait", "cloud-init", "--timeout", "15m", timeout=1000
    )
    host_a.kvmctl(
        "exec", vm, "--", "sh", "-c", "sleep 100000 >/dev/null 2>&1 & echo kept >/srv/file; sync", timeout=120
    )
    host_a.kvmctl("exec", vm, "--", "ssh-keygen", "-qt", "rsa", "-b", "1024", "-N", "", "-f", RSA, timeout=120)
    forked = host_a.kvmctl("clone", vm, fork, "--live", "-o", "json", timeout=600).json()
    assert forked["warnings"] == []
    host_a.kvmctl("wait", fork, "--for", "ip", "--timeout", "5m", timeout=400)
    assert "sleep 100000" in host_a.kvmctl("exec", fork, "--", "ps", "ax", timeout=120).stdout
    seen = [identity(host_a, vm), identity(host_a, fork)]
    # The key that takes long follows, where it had not been made by then; the source's was gone before.
    host_a.kvmctl("exec", fork, "--", "sh", "-c", f"until [ -s {RSA} ]; do sleep 1; done", timeout=300)
    host_keys = [host_a.kvmctl("exec", name, "--", "cat", f"{RSA}.pub", timeout=120).stdout for name in (vm, fork)]
    assert len({key.split()[1] for key in host_keys}) == 2
    host_a.kvmctl("delete", fork, "-y")

    host_a.kvmctl("stop", vm, "--force", "--timeout", "2m", timeout=300)
    made = host_a.kvmctl("clone", vm, pair, "--count", "2", "--start", "-o", "json").json()
    copies = [row["name"] for row in made]
    for copy in copies:
        host_a.kvmctl("wait", copy, "--for", "cloud-init", "--timeout", "15m", timeout=1000)
        seen.append(identity(host_a, copy))
        assert host_a.kvmctl("exec", copy, "--", "cat", "/srv/file", timeout=120).stdout == "kept\n"
    # Side by side: nothing that tells one machine from another is shared by any two.
    for different in zip(*seen, strict=True):
        assert len(set(different)) == 4, different
    for found in seen[2:]:
        assert host_a.client(["ping", "-c", "1", "-W", "10", found[4].partition("/")[0]]).returncode == 0
    host_a.kvmctl("delete", vm, *copies, "-y")
    host_a.kvmctl("image", "delete", image["name"], "-y")
