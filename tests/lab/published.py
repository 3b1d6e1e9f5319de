"""Published ports in the tests: guests that have some, and what is to be seen of them from outside."""

import re

from tests.lab import images
from tests.lab.hosts import Host
from tests.lab.process import Result

# The cards of the guests that the fixture web_and_sibling makes.
WEB = "52:54:00:77:00:01"
SIBLING = "52:54:00:77:00:02"


def kernel(tiny: images.Tiny, more: str = "") -> list[str]:
    """The options of create that boot the tiny guest."""
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", f"{tiny.cmdline} {more}"]
    return [*boot, "--memory", "256M", "--vcpus", "1"]


def rules(host: Host) -> str:
    """Whatever of kvmctl's is in the host's firewall."""
    nft = host.run(["nft", "list", "table", "inet", "kvmctl"], check=False).stdout
    tables = host.run(["iptables", "-S"]).stdout + host.run(["nft", "list", "ruleset"]).stdout
    text = nft + "".join(f"{line}\n" for line in tables.splitlines() if "kvmctl" in line.lower())
    # How many packets each has seen is no part of them.
    return re.sub(r"counter packets \d+ bytes \d+", "counter", text)


def fetch(host: Host, address: str, port: int, page: str = "hostname") -> Result:
    """Ask by HTTP from ``host``."""
    return host.client(["curl", "-sS", "--max-time", "20", f"http://{address}:{port}/{page}"], check=False)


def published(host: Host, *args: str) -> list[tuple[str, str, int, int, bool | None]]:
    """``port list`` in short."""
    found = host.kvmctl("port", "list", *args, "-o", "json").json()
    return [(r["protocol"], r["address"], r["host_port"], r["guest_port"], r["active"]) for r in found]
