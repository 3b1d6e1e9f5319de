"""Building a Debian image straight into the hypervisor's pool of images."""

from typing import Any

from kvmctl.connection import Hypervisor
from kvmctl.operations import image_build, image_import, image_store
from kvmctl.operations.progress import Progress


def free_name(hypervisor: Hypervisor, planned: image_build.Plan, name: str | None) -> str:
    """The name the image will have; see image_store.check_free()."""
    return image_store.check_free(hypervisor, name if name is not None else planned.suite.image)


def describe(planned: image_build.Plan, name: str) -> dict[str, Any]:
    """What a build would do."""
    return {
        "name": name,
        "os": planned.suite.os,
        "suite": planned.suite.codename,
        "virtual_size_bytes": planned.size,
        "packages": list(planned.packages),
        "sources": list(planned.mirrors.lines),
    }


def build(
    hypervisor: Hypervisor, planned: image_build.Plan, name: str | None = None, progress: Progress | None = None
) -> image_store.Image:
    """Build what image_build.plan() decided, and upload it. Raises Conflict before that where the name is taken."""
    progress = progress or Progress()
    chosen = free_name(hypervisor, planned, name)
    with image_import.workplace() as folder:
        # Named like the image, for the messages about it.
        disk = folder / f"{chosen}.qcow2"
        image_build.run(planned, disk, progress)
        return image_import.import_file(hypervisor, disk, chosen, progress)
