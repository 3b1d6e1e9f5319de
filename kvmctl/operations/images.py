"""Finding the image a guest is made from.

(Its first half only: the shape that others rely on. Replace the whole file with the real one.)
"""

from dataclasses import dataclass

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError
from kvmctl.operations.progress import Progress


@dataclass(frozen=True)
class Image:
    """An image in the hypervisor's pool of images; ``path`` is on the hypervisor's host."""

    name: str
    path: str
    format: str
    virtual_size_bytes: int
    os: str | None


def resolve(hypervisor: Hypervisor, name: str, progress: Progress) -> Image:
    """The image that ``--image`` names."""
    raise KvmctlError(f"no image {name!a} on {hypervisor.uri}")
