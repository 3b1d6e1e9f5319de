"""Measuring two ways of doing one thing against each other, turn by turn in one run."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One figure: medians in seconds over ``rounds`` interleaved runs, and the ratio that is to be reached."""

    name: str
    peer: str
    kvmctl_seconds: float
    peer_seconds: float
    rounds: int
    goal: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """kvmctl's median over the peer's."""
        return self.kvmctl_seconds / self.peer_seconds


def compare(
    name: str,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    goal: float | None = None,
    between: Callable[[], object] | None = None,
) -> Row:
    """Run both, in turns, ``rounds`` times after one run each that does not count; ``between`` cleans up after each."""
    taken: Mapping[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        # Who goes first changes, so that neither always finds the other's warm caches.
        for which in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            began = time.perf_counter()
            (ours if which == "ours" else theirs)()
            if turn:
                taken[which].append(time.perf_counter() - began)
            if between is not None:
                between()
    return Row(name, peer, statistics.median(taken["ours"]), statistics.median(taken["theirs"]), rounds, goal)


def quietly(args: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a program to its end, its output thrown away; it must succeed."""
    done = subprocess.run(args, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)} exited {done.returncode}: {done.stderr.decode(errors='replace')}")


@contextmanager
def installed() -> Iterator[str]:
    """The path of kvmctl's command as pip installs it: an editable installation starts more slowly."""
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        copy = Path(folder) / "source"
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        subprocess.run([python, "-m", "venv", "--system-site-packages", str(venv)], check=True)
        files = ["pyproject.toml", "README.md", "LICENSE", "kvmctl", "docs"]
        copy.mkdir()
        subprocess.run(["cp", "-r", *(str(REPOSITORY / name) for name in files), str(copy)], check=True)
        pip = [str(venv / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, str(copy)], check=True)
        yield str(venv / "bin" / "kvmctl")


def table(rows: Sequence[Row]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | kvmctl | peer | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows:
        goal = "" if row.goal is None else f"≤ {row.goal:g} × {'✓' if row.ratio <= row.goal else '✗'}"
        name = f"{row.name} ({row.note})" if row.note else row.name
        lines.append(
            f"| {name} | {_seconds(row.kvmctl_seconds)} | {_seconds(row.peer_seconds)} ({row.peer}) "
            f"| {row.ratio:.2f} × | {goal} |"
        )
    return "\n".join(lines)


def save(rows: Sequence[Row], path: Path) -> None:
    """The figures as JSON, with the machine they are of."""
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    content = {"machine": machine, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n")


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
