import io
from pathlib import Path

import bcrypt
import pycdlib
import pytest
import yaml

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.operations import seed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBs0 somebody@somewhere"


def read_iso(data: bytes) -> tuple[str, dict[str, bytes]]:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(data))
    files = {}
    for name in ("user-data", "meta-data"):
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, joliet_path=f"/{name}")
        files[name] = out.getvalue()
    label = iso.pvd.volume_identifier.decode().strip()
    iso.close()
    return label, files


def test_the_iso_is_what_cloud_init_looks_for() -> None:
    label, files = read_iso(seed.build(seed.Seed("id-1", "web", "demo", (KEY,))))
    assert label == "cidata"
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "id-1", "local-hostname": "web"}
    config = yaml.safe_load(files["user-data"])
    assert files["user-data"].startswith(b"#cloud-config\n")
    assert config["users"][0]["ssh_authorized_keys"] == [KEY]
    assert config["users"][0]["lock_passwd"] is True


def test_a_password_is_only_there_as_a_hash(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("päss wörd\nsecond line\n")
    hashed = seed.read_password(file)
    data = seed.build(seed.Seed("id-1", "web", "demo", (), hashed))
    assert "päss wörd".encode() not in data
    assert bcrypt.checkpw("päss wörd".encode(), hashed.encode())
    config = yaml.safe_load(read_iso(data)[1]["user-data"])
    assert config["users"][0]["passwd"] == hashed
    assert config["users"][0]["lock_passwd"] is False


def test_hostile_values_stay_values() -> None:
    evil = "a: b\nruncmd: [reboot]"
    config = yaml.safe_load(seed.user_data(seed.Seed("id", evil)))
    assert config["hostname"] == evil
    assert "runcmd" not in config


def test_own_user_data_goes_in_untouched() -> None:
    text = "#cloud-config\npackages: [vim]   # mine\n"
    assert read_iso(seed.build(seed.Seed("id", "web", user_data=text)))[1]["user-data"] == text.encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "private key"),
        (b"hello\n", "not an SSH public key"),
        (b"", "no SSH key"),
        (b"\xff\xfe", "not text"),
        (b"ssh-ed25519\n", "not an SSH public key"),
        (b"ssh-ed25519 AAAA \x1b[2J\n", "not an SSH public key"),
    ],
)
def test_refuses_what_is_no_public_key(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(UsageProblem, match=says):
        seed.read_ssh_keys(file)


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        seed.read_ssh_keys(tmp_path / "none")
    with pytest.raises(UsageProblem, match="not a file"):
        seed.read_user_data(tmp_path)
    big = tmp_path / "big"
    big.write_bytes(b"#" * (seed.LARGEST_TEXT + 1))
    with pytest.raises(UsageProblem, match="larger"):
        seed.read_user_data(big)


@pytest.mark.parametrize("content", ["nothing", "#cloud-config\n- a\n", "#cloud-config\na: [\n", ""])
def test_refuses_user_data_that_cloud_init_would_ignore(tmp_path: Path, content: str) -> None:
    file = tmp_path / "user-data"
    file.write_text(content)
    with pytest.raises(UsageProblem):
        seed.read_user_data(file)


@pytest.mark.parametrize("content", ["", "\n", "x" * 73 + "\n", "a\0b\n"])
def test_refuses_passwords_that_would_be_cut(tmp_path: Path, content: str) -> None:
    file = tmp_path / "password"
    file.write_text(content)
    with pytest.raises(UsageProblem):
        seed.read_password(file)


@pytest.mark.parametrize("name", ["", "Root", "1st", "a b", "-rf", "a" * 33, "ü", "a\n"])
def test_refuses_users(name: str) -> None:
    with pytest.raises(UsageProblem):
        seed.check_user(name)


@pytest.mark.parametrize("name", ["", "-a", "a_b", "a..b", "a" * 64, "a\n", "ü", "a." + "b." * 130])
def test_refuses_host_names(name: str) -> None:
    with pytest.raises(UsageProblem):
        seed.check_hostname(name)


@pytest.mark.parametrize(
    ("vm", "host"), [("web", "web"), ("web_1", "web-1"), ("web.example", "web"), ("9.", "9"), ("a" * 63, "a" * 63)]
)
def test_a_vms_name_makes_a_host_name(vm: str, host: str) -> None:
    assert seed.hostname_for(vm) == host
    seed.check_hostname(host)
