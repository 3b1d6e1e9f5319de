"""What ``host check`` says of machines of every kind, from copies of their /proc and /sys."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvmctl.cli.root import run
from kvmctl.preflight import host
from kvmctl.preflight.host_root import Root
from tests.unit.preflight import trees


def judged(tmp_path: Path, files: Mapping[str, str], kernel: bool = True) -> dict[str, Any]:
    found = host.of_root(Root.given(trees.plant(tmp_path, files, kernel))).as_dict()
    found["by_name"] = {check["name"]: check for check in found["checks"]}
    assert len(found["by_name"]) == len(found["checks"])
    return found


def levels(found: dict[str, Any]) -> dict[str, str]:
    return {name: check["level"] for name, check in found["by_name"].items()}


def test_a_healthy_intel_server(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.INTEL_SERVER)
    assert (found["verdict"], found["accel"], found["cpu"]["flag"]) == ("ok", "kvm", "vmx")
    assert set(levels(found).values()) == {"ok", "unknown"}
    seen = {name: check["detail"] for name, check in found["by_name"].items()}
    assert "all 8 processors" in seen["cpu-flag"]
    assert "dmar0, dmar1" in seen["iommu"]
    assert "intel_iommu=on iommu=pt" in seen["iommu"]
    assert seen["iommu-groups"].startswith("37 ")
    assert "512 of 2 MiB (500 free)" in seen["hugepages"]
    assert "lets guests" in seen["nested"]
    assert seen["cgroups"].startswith("v2: ")


def test_a_healthy_amd_server(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.AMD_SERVER)
    assert (found["verdict"], found["accel"], found["cpu"]["flag"]) == ("ok", "kvm", "svm")
    assert "saves 10 MiB" in found["by_name"]["ksm"]["detail"]
    assert "off in kvm_amd" in found["by_name"]["nested"]["detail"]
    assert "nested=1" in found["by_name"]["nested"]["hint"]


def test_virtualization_off_in_the_firmware(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.BIOS_OFF)
    assert (found["verdict"], found["accel"], found["cpu"]["flag"]) == ("warn", "tcg", None)
    assert "VT-x" in found["by_name"]["cpu-flag"]["hint"]
    assert levels(found)["kvm-device"] == "warn"
    assert "kvm-evidence" not in levels(found)
    assert "intel_iommu=on" in found["by_name"]["iommu"]["hint"]
    assert "modprobe vhost_net" in found["by_name"]["vhost-net"]["hint"]


def test_a_vm_without_nested_virtualization(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.PLAIN_VM)
    assert (found["verdict"], found["accel"]) == ("warn", "tcg")
    assert "kvm_amd nested=1" in found["by_name"]["cpu-flag"]["hint"]
    assert "virtual IOMMU" in found["by_name"]["iommu"]["hint"]


def test_an_arm_server(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.ARM_SERVER)
    assert (found["accel"], found["cpu"]["flag"]) == ("tcg", None)
    assert "ARM" in found["by_name"]["cpu-flag"]["detail"]
    assert "kvm-evidence" not in levels(found)
    assert "--accel kvm" in found["by_name"]["accel"]["detail"]


def test_a_container(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.CONTAINER)
    assert (found["accel"], found["cpu"]["flag"]) == ("tcg", "vmx")
    assert "docker" in found["by_name"]["container"]["detail"]
    assert "--device /dev/kvm" in found["by_name"]["kvm-device"]["hint"]
    assert "vmx, yet /dev/kvm is not there" in found["by_name"]["kvm-evidence"]["detail"]


def test_a_container_of_systemds(tmp_path: Path) -> None:
    tree = {name: text for name, text in trees.CONTAINER.items() if name != ".dockerenv"}
    found = judged(tmp_path, {**tree, "run/systemd/container": "systemd-nspawn\n"})
    assert "a systemd-nspawn container" in found["by_name"]["container"]["detail"]
    assert "--bind=/dev/kvm" in found["by_name"]["container"]["hint"]


def test_a_device_that_the_cpu_contradicts(tmp_path: Path) -> None:
    found = judged(tmp_path, trees.CONTRADICTION)
    assert (found["verdict"], found["accel"]) == ("warn", "tcg")
    assert levels(found)["kvm-device"] == "ok"
    assert levels(found)["cpu-flag"] == "warn"
    assert "kvm_pvm" in found["by_name"]["kvm-evidence"]["detail"]


def test_proc_and_sys_without_dev(tmp_path: Path) -> None:
    files = {name: text for name, text in trees.INTEL_SERVER.items() if not name.startswith("dev/")}
    found = judged(tmp_path, files)
    assert found["accel"] == "kvm"
    assert levels(found)["kvm-device"] == "unknown"
    (tmp_path / "sys/class/misc/loop-control").mkdir(parents=True)
    assert judged(tmp_path, {}, kernel=False)["accel"] == "tcg"
    (tmp_path / "sys/class/misc/kvm").mkdir()
    assert judged(tmp_path, {}, kernel=False)["accel"] == "kvm"


def test_only_a_cpuinfo(tmp_path: Path) -> None:
    found = judged(tmp_path, {"proc/cpuinfo": "processor : 0\nflags : svm\n"}, kernel=False)
    assert (found["verdict"], found["accel"]) == ("ok", "kvm")
    assert levels(found)["iommu"] == "unknown"


def test_cgroups_of_version_1_and_missing_ones(tmp_path: Path) -> None:
    v1 = dict.fromkeys(trees.V2, "")
    mounts = "".join(f"cgroup /sys/fs/cgroup/{c} cgroup rw,{c} 0 0\n" for c in ("cpu,cpuacct", "memory", "devices"))
    files = {**trees.INTEL_SERVER, "proc/mounts": mounts}
    top = trees.plant(tmp_path, files)
    (tmp_path / next(iter(v1))).unlink()
    found = host.of_root(Root(top)).as_dict()
    check = next(check for check in found["checks"] if check["name"] == "cgroups")
    assert check["level"] == "warn"
    assert "v1: cpu, cpuacct, memory, devices; missing: cpuset, blkio, pids" in check["detail"]
    (tmp_path / "proc/mounts").write_text("tmpfs /tmp tmpfs rw 0 0\n")
    found = host.of_root(Root(top)).as_dict()
    check = next(check for check in found["checks"] if check["name"] == "cgroups")
    assert "no cgroup controllers are mounted" in check["detail"]


@pytest.mark.parametrize(
    ("mounts", "conf", "read_only"),
    [
        ("cgroup /sys/fs/cgroup/memory cgroup ro,nosuid,memory 0 0\n", "", True),
        ("cgroup /sys/fs/cgroup cgroup2 ro,nosuid 0 0\n", "#cgroup_controllers = []\n", True),
        ("cgroup /sys/fs/cgroup cgroup2 ro,nosuid 0 0\n", "cgroup_controllers = [ ]  # none\n", False),
        ("cgroup2 /sys/fs/cgroup/unified cgroup2 ro 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "", False),
        ("cgroup /sys/fs/cgroup/systemd cgroup ro,name=systemd 0 0\n", "", False),
    ],
)
def test_cgroups_that_libvirt_cannot_write_to(tmp_path: Path, mounts: str, conf: str, read_only: bool) -> None:
    """As systemd-nspawn and Docker mount them: libvirt then starts no guest, unless it is told to use none."""
    files = {**trees.INTEL_SERVER, "proc/mounts": mounts, "etc/libvirt/qemu.conf": conf}
    found = host.of_root(Root(trees.plant(tmp_path, files))).as_dict()
    check = next(check for check in found["checks"] if check["name"] == "cgroups")
    assert ("for reading only" in check["detail"]) is read_only
    assert not read_only or (check["level"], "cgroup_controllers = [ ]" in check["hint"]) == ("warn", True)


def test_an_iommu_that_the_command_line_switched_off(tmp_path: Path) -> None:
    found = judged(tmp_path, {**trees.BIOS_OFF, "proc/cmdline": "intel_iommu=off\n"})
    assert "remove that option" in found["by_name"]["iommu"]["hint"]


def test_links_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("flags : vmx\n")
    top = tmp_path / "top"
    (top / "proc").mkdir(parents=True)
    (top / "proc/cpuinfo").symlink_to(outside)
    assert Root(str(top)).cpuinfo() is None
    (top / "proc/loop").symlink_to("loop")
    assert Root(str(top)).text("proc/loop") is None
    assert not Root(str(top)).exists("../outside")


def test_nonsense_in_files_is_no_error(tmp_path: Path) -> None:
    files = dict.fromkeys(trees.KERNEL, "\x00\x1b[31m-99999999999999999999999ÿ nonsense")
    found = judged(tmp_path, {**trees.INTEL_SERVER, **files, "proc/cpuinfo": trees.INTEL_SERVER["proc/cpuinfo"]})
    assert found["accel"] == "kvm"


def test_directories_in_the_place_of_files(tmp_path: Path) -> None:
    for name in (*trees.KERNEL, "proc/cmdline"):
        (tmp_path / name).mkdir(parents=True)
    found = judged(tmp_path, {"proc/cpuinfo": "flags : vmx\n"}, kernel=False)
    assert found["accel"] == "kvm"


@pytest.mark.parametrize(
    ("text", "code", "verdict", "flag"),
    [
        ("processor : 0\nflags : fpu vmx\n", 0, "ok", "vmx"),
        ("processor : 0\nflags : fpu svm\n", 0, "ok", "svm"),
        ("flags : vmx\nflags : fpu\n", 0, "warn", "vmx"),
        ("flags : fpu\n", 7, "fail", None),
        ("Features : vmx\n", 7, "fail", None),
        ("", 7, "fail", None),
    ],
)
def test_cpuinfo_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, verdict: str, flag: str | None
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert run(["host", "check", "--cpuinfo", str(path), "-o", "json"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert list(found) == ["verdict", "accel", "cpu", "checks"]
    assert (found["verdict"], found["cpu"]["flag"]) == (verdict, flag)
    assert found["accel"] == ("kvm" if flag else "tcg")
    assert set(found["cpu"]) == {"vendor", "model", "flag"}
    assert all(set(check) == {"name", "level", "detail", "hint"} for check in found["checks"])
    assert run(["host", "check", "--cpuinfo", str(path)]) == code
    assert ("can virtualize" in capsys.readouterr().out) == (code == 0)


def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    assert run(["host", "check", "--cpuinfo", path + "/none"]) == 3
    assert run(["host", "check", "--cpuinfo", path]) == 2
    assert run(["host", "check", "--cpuinfo", ""]) == 2
    assert run(["host", "check", "--root", ""]) == 2
    assert run(["host", "check", "--root", path + "/none"]) == 3
    assert run(["host", "check", "--root", path]) == 3
    assert run(["host", "check", "--root", str(file)]) == 2
    assert run(["host", "check", "--root", path, "--cpuinfo", path]) == 2
    assert run(["host", "check", "--root", path, "-c", "qemu:///system"]) == 2
    assert run(["host", "check", "extra"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("error:") == 10


def test_an_unreachable_hypervisor_here_is_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"qemu:///system?socket={tmp_path}/none"
    assert run(["host", "check", "-c", uri, "-o", "json"]) == 7
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "fail"
    failed = [check for check in found["checks"] if check["level"] == "fail"]
    assert [check["name"] for check in failed] == ["libvirt"]
    assert "none" in failed[0]["detail"]


def test_an_unreachable_hypervisor_elsewhere_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 1 of loopback: nothing listens there.
    assert run(["host", "check", "-c", "qemu+tcp://127.0.0.1:1/system", "-o", "json"]) == 5
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "connection"


def test_files_that_the_kernel_makes_are_read() -> None:
    assert Root().number("proc/sys/net/ipv4/ip_forward") in (0, 1)
    assert Root().text("proc/mounts") == Path("/proc/mounts").read_text().strip()


def test_long_files_are_read_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 200_000 + "end")
    assert (Root(str(tmp_path)).text("long") or "").endswith("xend")
