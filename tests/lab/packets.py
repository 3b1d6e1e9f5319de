"""Who reaches whom: what must answer is given time, what must not is asked more than once."""

from tests.lab.guest import Guest

# An emulated guest on a busy machine may take seconds for its first answer.
PATIENCE = 45


def reaches(guest: Guest, address: str, nic: str | None = None) -> bool:
    """Whether an echo comes back to the guest, be it late; ``nic``: through that card of its."""
    tool = ("ping6" if ":" in address else "ping") + (f" -I {nic}" if nic is not None else "")
    tried = f"n=0; until {tool} -c 1 -W 2 {address} >/dev/null; do n=$((n+1)); [ $n -lt {PATIENCE // 3} ] || exit 1"
    # Where nobody is asked for the address, ping is back at once.
    return guest.run(f"{tried}; sleep 1; done; echo reached", timeout=2 * PATIENCE, check=False) == "reached"


def is_cut_off(guest: Guest, address: str) -> bool:
    """Whether none of two echoes comes back to the guest."""
    tool = "ping6" if ":" in address else "ping"
    # Without a route ping does not say how many came back: that is none.
    return guest.run(f"{tool} -c 2 -W 2 {address} | grep -q ' bytes from ' || echo silent", check=False) == "silent"
