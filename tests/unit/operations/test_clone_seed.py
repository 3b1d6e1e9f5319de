"""The seed of a copy."""

import pytest
import yaml

from kvmctl.errors import Refused
from kvmctl.operations import clone_seed
from kvmctl.operations.seed import Seed, build

ID = "44444444-4444-4444-8444-444444444444"


def test_a_seed_that_create_made_is_read_and_renewed() -> None:
    seed = build(Seed("old", "web", user="ann", ssh_keys=("ssh-ed25519 AAAA",)))
    content = clone_seed.unpack(seed)
    assert set(content) == {"user-data", "meta-data"}
    new = clone_seed.unpack(clone_seed.pack(clone_seed.renewed(content, ID, "web2")))
    meta = yaml.safe_load(new["meta-data"])
    assert meta == {"instance-id": ID, "local-hostname": "web2", "dsmode": "local"}
    user = yaml.safe_load(new["user-data"])
    assert user["hostname"] == "web2"
    assert user["users"] == yaml.safe_load(content["user-data"])["users"]
    assert new["vendor-data"].startswith(b"#cloud-boothook\n#!/bin/sh\n")
    assert b"machine-id" in new["vendor-data"]


def test_other_user_data_stays_byte_for_byte() -> None:
    for text in (b"#!/bin/sh\necho hostname: x\n", b"#cloud-config\n# mine\nruncmd: [a]\n"):
        assert clone_seed.renewed({"user-data": text}, ID, "b")["user-data"] == text


def test_a_domain_in_the_name_stays() -> None:
    new = clone_seed.renewed({"user-data": b"#cloud-config\nfqdn: a.example.org\n"}, ID, "b")
    assert yaml.safe_load(new["user-data"]) == {"fqdn": "b.example.org", "hostname": "b"}


@pytest.mark.parametrize("data", [b"", b"x" * 50000, build(Seed("i", "h"))[:40000]])
def test_what_is_no_iso_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        clone_seed.unpack(data)


def test_a_fork_keeps_its_instance_and_loses_the_boothook() -> None:
    copied = clone_seed.renewed({"meta-data": b"instance-id: first\n"}, ID, "b")
    forked = clone_seed.renamed(copied, "c")
    assert yaml.safe_load(forked["meta-data"])["instance-id"] == ID
    assert yaml.safe_load(forked["meta-data"])["local-hostname"] == "c"
    assert "vendor-data" not in forked
    assert clone_seed.renamed({"vendor-data": b"#cloud-config\n"}, "c")["vendor-data"] == b"#cloud-config\n"
