"""What a host tells over ssh that its libvirt does not: its clock, and whom it reaches.

Only where the host's own URI goes through ssh, with the user and the key that libvirt takes: nothing is tried that the
user has not set up.
"""

import re
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from kvmctl.connection import Hypervisor

# One that answers later helps no migration either.
SECONDS = 8.0
# How long that host waits for the other one's port, and for its name.
LOOK_SECONDS = 2
# Read by that host's shell; $0 is the other host as the destination's URI has it, $1 a port, $2 its own name.
_SCRIPT = f"""\
export LC_ALL=C
echo "clock $(date +%s.%N)"
[ -z "$0" ] || {{
  getent ahosts "$2" >/dev/null && echo "named yes" || echo "named no"
  timeout {LOOK_SECONDS} bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$0" "$1" 2>&1 | sed 's/^/port /'
  echo "port end ${{PIPESTATUS[0]}}"
}}
"""


class Told(NamedTuple):
    """``ahead``: by how many seconds its clock is ahead of this machine's, at least and at most.

    ``port``: whether the other host's port answers it (None: not asked), ``why`` not; ``named``: whether it can
    resolve the other one's own name.
    """

    ahead: tuple[float, float] | None = None
    port: bool | None = None
    why: str = ""
    named: bool | None = None


def ask(hypervisor: Hypervisor, host: str = "", port: int = 0, name: str = "") -> Told | None:
    """Ask the hypervisor's host, and where ``host`` is given whether it reaches that. None where it cannot be asked."""
    if hypervisor.transport != "ssh" or hypervisor.host is None or hypervisor.host.startswith("-"):
        return None
    # Imported late, as only ssh needs it.
    import shlex
    import subprocess

    command = shlex.join(["bash", "-c", _SCRIPT, host, str(port), name])
    before = time.time()
    try:
        done = subprocess.run(
            [*_ssh(hypervisor), "--", hypervisor.host, command],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read(done.stdout, before, time.time())


def _ssh(hypervisor: Hypervisor) -> list[str]:
    """What libvirt's own ssh transport would call, and never a question."""
    parts = urlsplit(hypervisor.uri)
    query = {key: values[0] for key, values in hypervisor.query.items()}
    argv = ["ssh", "-T", "-e", "none", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={SECONDS:.0f}"]
    if parts.port:
        argv += ["-p", str(parts.port)]
    if parts.username:
        argv += ["-l", parts.username]
    if query.get("keyfile"):
        argv += ["-i", query["keyfile"]]
    if query.get("no_verify") == "1":
        argv += ["-o", "StrictHostKeyChecking=no"]
    return argv


def read(said: str, before: float, after: float) -> Told:
    """What the script printed between ``before`` and ``after`` by this machine's clock. Pure."""
    clock = re.search(r"^clock (\d+(?:\.\d+)?)$", said, re.MULTILINE)
    ahead = (float(clock[1]) - after, float(clock[1]) - before) if clock else None
    named = re.search(r"^named (yes|no)$", said, re.MULTILINE)
    end = re.search(r"^port end (\d+)$", said, re.MULTILINE)
    if end is None:
        return Told(ahead, named=named[1] == "yes" if named else None)
    # A port where nobody listens answers as well: the way there is open. 126, 127: no program there to try it with.
    answers = None if end[1] in ("126", "127") else end[1] == "0" or "Connection refused" in said
    lines = re.findall(r"^port (?!end \d)(.*)$", said, re.MULTILINE)
    why = "no answer" if end[1] == "124" or not lines else lines[-1].rpartition(": ")[2]
    return Told(ahead, answers, why if answers is False else "", named[1] == "yes" if named else None)
