"""``python -m tests.bench``: the figures, each as a ratio against a peer in the same run. Needs root."""

import argparse
import os
import sys
from pathlib import Path

from tests.bench import copies, main_job, networks
from tests.bench.measure import installed, save, table
from tests.lab.lab import Lab


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the bench starts a lab of its own: run it as root")
    with Lab(f"bench{os.getpid()}") as lab, installed() as kvmctl:
        rows = main_job.run(lab.a, kvmctl, options.rounds)
        rows += networks.run(lab.a, kvmctl, options.rounds)
        rows += copies.run(lab.a, kvmctl, options.rounds)
    sys.stdout.write(table(rows) + "\n")
    if options.json is not None:
        save(rows, options.json)


if __name__ == "__main__":
    main()
