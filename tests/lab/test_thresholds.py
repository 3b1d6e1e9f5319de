"""Thresholds of overcommitment from kvmctl's own configuration file."""

from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.hosts import Host


@pytest.mark.usefixtures("leaves_nothing")
def test_too_much_is_warned_of_or_refused(host_a: Host, tiny: images.Tiny, tmp_path: Path) -> None:
    (tmp_path / "kvmctl").mkdir()
    file = tmp_path / "kvmctl/config.toml"
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    create = [
        *("create", "much", "--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline),
        *("--memory", "256M,max=512M", "--vcpus", "1,max=2", "--graphics", "none", "--net", "none"),
    ]
    file.write_text("[overcommit]\ncpu_ratio = 0.1\nmemory_ratio = 0.001\n")
    refused = host_a.kvmctl(*create, "--strict", check=False, env=env)
    assert refused.returncode == 7
    assert "more than 0.1 each" in refused.stderr
    assert host_a.kvmctl("list", "-o", "json").json() == []

    assert "warning: running guests" not in host_a.kvmctl(*create, "--no-start", env=env).stderr
    refused = host_a.kvmctl("start", "much", "--strict", check=False, env=env)
    assert refused.returncode == 7
    assert host_a.virsh("domstate", "much").stdout.strip() == "shut off"
    started = host_a.kvmctl("start", "much", "--paused", env=env)
    assert "vCPUs on" in started.stderr
    assert "would be promised 256 MiB of the host's" in started.stderr

    file.write_text("[overcommit]\ncpu_ratio = 0.1\nstrict = true\n")
    more = host_a.kvmctl("set", "much", "--vcpus", "2", check=False, env=env)
    assert (more.returncode, "vCPUs on" in more.stderr) == (7, True)
    assert host_a.kvmctl("set", "much", "--title", "fine", env=env).returncode == 0
    assert host_a.kvmctl("info", "much", "-o", "json").json()["vcpus"] == 1
    file.write_text("[overcommit]\ncpu_ratio = many\n")
    wrong = host_a.kvmctl("set", "much", "--vcpus", "2", check=False, env=env)
    assert (wrong.returncode, str(file) in wrong.stderr) == (2, True)
    host_a.kvmctl("delete", "much", "-y")
