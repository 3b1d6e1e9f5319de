"""``python -m tests.bench.migrate``: pause and time of ``kvmctl migrate`` against plain ``virsh migrate``.

The same guest goes to and fro, by kvmctl and virsh in turn, so that both meet the same machine. The pause is
libvirt's own figure of the finished job (VIR_DOMAIN_JOB_DOWNTIME) for both; the wire's witness stands beside it.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import libvirt

from tests.bench.measure import installed
from tests.lab import images
from tests.lab.hosts import Host
from tests.lab.lab import Lab
from tests.lab.moving import Moving, Witness, define, dirty

VIRSH = ("migrate", "--live", "--persistent", "--undefinesource")
TOOLS = ("kvmctl", "virsh")
# What a busy guest rewrites over and over, with random bytes.
BUSY_MIB = 160
# After so long kvmctl is to have given up; virsh never does, and its job is cancelled.
LONGEST_SECONDS = 60
# By name: whether the guest is busy, and the bandwidth in MiB/s.
CASES: dict[str, tuple[bool, int | None]] = {
    "idle": (False, None),
    "busy": (True, None),
    "idle-30": (False, 30),
    "busy-30": (True, 30),
}


def once(lab: Lab, guest: Moving, tool: str, program: str, bandwidth: int | None) -> dict[str, Any]:
    """Move the guest to the other host; how long it took, libvirt's job of it too, and it stood still, in ms."""
    source = guest.host()
    there = next(host for host in lab.hosts if host is not source)
    witness = Witness(lab, guest.address)
    began = time.monotonic()
    done = _move(source, there, guest.name, tool, program, bandwidth)
    took = (time.monotonic() - began) * 1000
    gap = witness.gaps()[:1]
    stats = there.conn.lookupByName(guest.name).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED) if done else {}
    return {
        "tool": tool,
        "done": done,
        "total_ms": round(took),
        "job_ms": stats.get("time_elapsed"),
        "downtime_ms": stats.get("downtime"),
        "wire_ms": gap[0] if gap else None,
    }


def _move(source: Host, there: Host, name: str, tool: str, program: str, bandwidth: int | None) -> bool:
    if tool == "virsh":
        limit = ["--bandwidth", str(bandwidth)] if bandwidth else []
        command = ["virsh", "-c", source.uri, *VIRSH, *limit, name, there.tcp_uri]
        cancelling = threading.Timer(LONGEST_SECONDS, lambda: source.virsh("domjobabort", name, check=False))
        cancelling.start()
        try:
            return source.client(command, check=False, timeout=200).returncode == 0
        finally:
            cancelling.cancel()
            cancelling.join()
    limit = ["--bandwidth", f"{bandwidth}M"] if bandwidth else []
    command = [program, "migrate", name, there.tcp_uri, *limit, "--timeout", f"{LONGEST_SECONDS}s"]
    return source.client(command, env=source.environment(PYTHONPATH=None), check=False, timeout=200).returncode == 0


def case(lab: Lab, program: str, title: str, rounds: int, busy: bool, bandwidth: int | None) -> dict[str, Any]:
    """One kind of guest, ``rounds`` moves by each tool."""
    guest = define(lab, lab.a, images.tiny(), f"bench-{os.getpid()}", memory=512 if busy else 256)
    if busy:
        dirty(guest, BUSY_MIB)
    # Not counted: at its first question each libvirtd asks QEMU for all that it can do, for seconds.
    for tool in TOOLS:
        once(lab, guest, tool, program, bandwidth)
    runs = [once(lab, guest, tool, program, bandwidth) for _ in range(rounds) for tool in TOOLS]
    domain = guest.host().conn.lookupByName(guest.name)
    domain.destroy()
    domain.undefine()
    return {"case": title, "runs": runs}


def _line(found: dict[str, Any], tool: str) -> str:
    mine = [run for run in found["runs"] if run["tool"] == tool]
    done = [run for run in mine if run["done"]]
    pauses = [run["downtime_ms"] for run in done if run["downtime_ms"] is not None]
    wire = [run["wire_ms"] for run in done if run["wire_ms"] is not None]
    jobs = [run["job_ms"] for run in done if run["job_ms"] is not None]
    totals = [run["total_ms"] for run in done]

    def both(values: list[float]) -> str:
        return f"{statistics.median(values):6.0f} {max(values):6.0f}" if values else "     -      -"

    figures = "  ".join(both(values) for values in (pauses, wire, jobs, totals))
    return f"{found['case']:<22} {tool:<7} {len(done):>2}/{len(mine):<2} {figures}"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.migrate", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="moves by each tool and case (default: %(default)s)")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be given again")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    with installed() as program, Lab(f"bm{os.getpid()}") as lab:
        found = [case(lab, program, name, options.rounds, *CASES[name]) for name in options.case or CASES]
    sys.stdout.write(
        f"{'guest':<22} {'tool':<7} {'done':<5}   ms, median and max: pause, on the wire, libvirt's job, in all\n"
    )
    for row in found:
        sys.stdout.write("".join(_line(row, tool) + "\n" for tool in TOOLS))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
