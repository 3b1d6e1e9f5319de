"""Which VMs a command line means."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import NotFound


def matching(hypervisor: Hypervisor, patterns: Sequence[str], *, must_match: bool = True) -> list[str]:
    """The names meant by ``patterns``, each once, in the order given and sorted within a pattern.

    A text without ``*``, ``?`` or ``[`` stays as it is (it may be a name, a UUID or an id). With
    ``must_match`` a pattern that matches no VM raises NotFound.
    """
    known: list[str] | None = None
    found: dict[str, None] = {}
    for pattern in patterns:
        if not any(c in pattern for c in "*?["):
            found[pattern] = None
            continue
        if known is None:
            with translated(hypervisor.uri):
                known = sorted(domain.name() for domain in hypervisor.conn.listAllDomains(0))
        hits = [name for name in known if fnmatchcase(name, pattern)]
        if not hits and must_match:
            raise NotFound(f"no VM matches {pattern!a} on {hypervisor.uri}", "'kvmctl list' shows those there are")
        found.update(dict.fromkeys(hits))
    return list(found)
