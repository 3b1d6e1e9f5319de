"""The main job on a real Debian: an image, a guest that logs one in, a command in it, and nothing left of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.hosts import Host
from tests.lab.process import run

Named = Callable[[str], str]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)])
    return path


def ssh(host: Host, key: Path, address: str, port: int, command: str) -> str:
    """What ``command`` prints in the guest behind ``address:port``, logged in as demo, seen from beside ``host``."""
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    args = ["ssh", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", *options, "-p", str(port)]
    return host.client([*args, f"demo@{address}", command], timeout=120).stdout


@pytest.mark.parametrize("where", ["here", "tcp", pytest.param("ssh", marks=pytest.mark.full)])
@pytest.mark.usefixtures("leaves_nothing")
def test_the_main_job(
    host_a: Host, host_b: Host, debian: Path, key: Path, vm_name: Named, where: str, tmp_path: Path
) -> None:
    target, address = (host_a, "127.0.0.1") if where == "here" else (host_b, host_b.address)
    uri: tuple[str, ...] = ()
    if where == "tcp":
        uri = ("-c", target.tcp_uri)
    elif where == "ssh":
        target.start_sshd()
        uri = ("-c", target.ssh_uri)

    def kvmctl(*args: str, timeout: float = 120) -> str:
        return host_a.kvmctl(*uri, *args, timeout=timeout).stdout

    name, second = vm_name("main"), vm_name("renamed")
    image = json.loads(kvmctl("image", "import", str(debian), "--name", "debian-12", "-o", "json", timeout=300))
    assert image["format"] == "qcow2"
    assert image["os"] == "debian12"
    password = tmp_path / "password"
    password.write_text("correct horse battery staple\n")
    row = json.loads(
        kvmctl(
            "create", name, "--image", "debian-12", "--memory", "1G", "--disk", "5G", "--net", "user",
            "-p", f"{address}:2222:22", "--user", "demo", "--ssh-key", f"{key}.pub", "--hostname", "inside",
            "--password-file", str(password), "--wait", "cloud-init", "--timeout", "10m", "-o", "json", timeout=700,
        )
    )  # fmt: skip
    assert row["state"] == "running"
    assert row["image"] == "debian-12"

    told = ssh(
        host_a, key, address, 2222, "uname -a; hostname; sudo -n id -un; cloud-init status; lsblk -bdno SIZE /dev/vda"
    )
    uname, hostname, root, status, size = told.splitlines()
    assert hostname == "inside"
    assert root == "root"
    assert status == "status: done"
    assert size == str(5 * 2**30)
    assert kvmctl("exec", name, "--", "uname", "-a").strip() == uname
    failing = host_a.kvmctl(*uri, "exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (failing.returncode, failing.stdout, failing.stderr) == (7, "out\n", "err\n")
    # The root file system fills the disk, and the password is nowhere in clear.
    assert int(kvmctl("exec", name, "--", "df", "--output=size", "-B1", "/").split()[1]) > 4 * 2**30
    secret = "grep -rlF 'correct horse' /etc /var/lib/cloud /run/cloud-init 2>/dev/null | wc -l"
    assert kvmctl("exec", name, "--", "sh", "-c", secret).strip() == "0"

    seed = next(volume for volume in volumes(target) if volume.endswith("-seed.iso"))
    mode = target.run(["stat", "-c", "%a", f"/var/lib/libvirt/images/{seed}"]).stdout.strip()
    assert mode == "600"
    picture = tmp_path / "screen.png"
    kvmctl("screenshot", name, str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [vm["name"] for vm in json.loads(kvmctl("list", "-o", "json"))] == [name]
    used = json.loads(kvmctl("image", "info", "debian-12", "-o", "json"))["used_by"]
    assert name in used
    refused = host_a.kvmctl(*uri, "image", "delete", "debian-12", "--yes", check=False)
    assert refused.returncode == 7
    assert name in refused.stderr

    assert json.loads(kvmctl("stop", name, "-o", "json", timeout=200))["state"] == "shutoff"
    kvmctl("rename", name, second)
    kvmctl("start", second, "--wait", "ssh", "--timeout", "10m", timeout=700)
    assert ssh(host_a, key, address, 2222, "hostname").strip() == "inside"
    kvmctl("delete", second, "--yes")
    assert volumes(target) == ["debian-12.qcow2"]
    kvmctl("image", "delete", "debian-12", "--yes")
    assert volumes(target) == []


def volumes(host: Host) -> list[str]:
    return sorted(v.name() for pool in host.conn.listAllStoragePools(2) for v in pool.listAllVolumes(0))
