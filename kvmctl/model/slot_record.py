"""Which moment the slot of 'snapshot revert' holds, as it is kept in the VM's own metadata when the revert is done.

A slot that this does not name was left by a revert that was killed: it holds a present that nobody came to know of.
"""

from kvmctl.model.metadata import Metadata, extra, new_extra, with_extra


def settled(metadata: Metadata) -> str | None:
    """When the slot's snapshot was created (as Snapshot.created has it); None where no revert was done yet."""
    element = extra(metadata, "slot")
    return element.get("created") if element is not None else None


def settle(metadata: Metadata, created: str | None) -> Metadata:
    """``metadata`` with the slot that is good, None for none."""
    if created is None:
        return with_extra(metadata, "slot", None)
    element = new_extra("slot")
    element.set("created", created)
    return with_extra(metadata, "slot", element)
