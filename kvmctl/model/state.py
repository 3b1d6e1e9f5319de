"""A domain's state as a word. Kept apart from what reads XML, so that ``list`` does not pay for lxml."""

# virDomainState of libvirt's libvirt-domain.h, in its order and its words.
WORDS = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")

# What has a running id: everything that is not off.
ACTIVE = frozenset({"running", "blocked", "paused", "shutdown", "pmsuspended", "crashed"})


def word(number: int) -> str:
    """The word for libvirt's ``number``; ``nostate`` for one that a newer libvirt may add."""
    return WORDS[number] if 0 <= number < len(WORDS) else "nostate"
