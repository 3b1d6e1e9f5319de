"""A UUID is one that Python and libvirt take for random, and never the same."""

import uuid

from kvmctl.operations.new_uuid import new_uuid


def test_a_uuid_is_of_version_4_and_new_each_time() -> None:
    made = [new_uuid() for _ in range(2000)]
    assert len(set(made)) == len(made)
    for text in made:
        read = uuid.UUID(text)
        assert (str(read), read.version, read.variant) == (text, 4, uuid.RFC_4122)
