"""The images that there are: volumes of the pool ``kvmctl-images``, each with a file of its own and all its data.

An image's name is its volume's, without ``.qcow2``.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import libvirt

from kvmctl.connection import Hypervisor, explain, translated
from kvmctl.errors import Conflict, KvmctlError, NotFound, Refused
from kvmctl.model import xml
from kvmctl.model.names import check_new_name
from kvmctl.operations import pools
from kvmctl.operations.image_catalogue import os_of
from kvmctl.operations.progress import Progress
from kvmctl.operations.undo import Undo
from kvmctl.preflight import dependents

SUFFIX = ".qcow2"


@dataclass(frozen=True)
class Image:
    """An image on the hypervisor's host; ``path`` is there, ``volume`` its name in the pool ``pool``.

    ``size_bytes`` is what it takes on the host's disk. ``backing`` is the file that it is itself only a
    layer over; kvmctl makes no such image and no guest from one.
    """

    name: str
    path: str
    format: str
    virtual_size_bytes: int
    os: str | None
    size_bytes: int = 0
    volume: str = ""
    pool: str = pools.IMAGES
    backing: str | None = None

    def as_dict(self, used_by: Sequence[str]) -> dict[str, Any]:
        """``{name, path, format, size_bytes, virtual_size_bytes, os, used_by}``."""
        return {
            "name": self.name,
            "path": self.path,
            "format": self.format,
            "size_bytes": self.size_bytes,
            "virtual_size_bytes": self.virtual_size_bytes,
            "os": self.os,
            "used_by": list(used_by),
        }

    def check_usable(self) -> "Image":
        """Itself, or Refused where no guest may be made from it."""
        if self.backing is not None:
            raise Refused(
                f"the image {self.name} names a backing file outside itself ({self.backing[:200]!a})",
                "import the whole disk instead: 'qemu-img convert' makes one",
            )
        if not self.whole:
            raise Refused(*self._not_whole())
        return self

    @property
    def whole(self) -> bool:
        """Whether all of it has arrived: see pools.upload()."""
        return self.format != "qcow2" or self.virtual_size_bytes != pools.PLACEHOLDER

    def _not_whole(self) -> tuple[str, str]:
        return (
            f"the image {self.name} is not whole: its upload has not ended or was cut off",
            f"if none is under way, 'kvmctl image delete {self.name}' and bring it in again",
        )

    def taken(self, uri: str) -> Conflict:
        """What to say where another image shall have its name on ``uri``."""
        if not self.whole:
            return Conflict(*self._not_whole())
        return Conflict(
            f"there is an image {self.name} already on {uri}",
            f"give another --name, or delete it: 'kvmctl image delete {self.name}'",
        )


def image_of(volume: libvirt.virStorageVol, pool: str = pools.IMAGES) -> Image:
    """What libvirt says of one volume."""
    tree = xml.parse(volume.XMLDesc(0), "storage volume", "volume")
    name = tree.findtext("name") or volume.name()
    format_ = tree.find("target/format")
    shown = name.removesuffix(SUFFIX) or name
    return Image(
        name=shown,
        path=tree.findtext("target/path") or volume.path(),
        format=format_.get("type", "raw") if format_ is not None else "raw",
        virtual_size_bytes=int(tree.findtext("capacity") or 0),
        os=os_of(shown),
        size_bytes=int(tree.findtext("allocation") or 0),
        volume=name,
        pool=pool,
        backing=tree.findtext("backingStore/path") or None,
    )


def images(hypervisor: Hypervisor) -> list[Image]:
    """Every image, sorted by name; none where the pool has never been made."""
    if pools.find_pool(hypervisor, pools.IMAGES) is None:
        return []
    pool = pools.image_pool(hypervisor)
    pools.refresh(pool)
    found = []
    with translated(hypervisor.uri):
        for volume in pool.listAllVolumes(0):
            try:
                found.append(image_of(volume))
            except libvirt.libvirtError as error:
                # Deleted since it was listed.
                if pools.find_volume(pool, volume.name()) is not None:
                    raise explain(error, hypervisor.uri) from error
    return sorted(found, key=lambda image: image.name)


def listing(hypervisor: Hypervisor) -> list[dict[str, Any]]:
    """The rows of ``image list``."""
    found = images(hypervisor)
    with translated(hypervisor.uri):
        used = dependents.by_path(hypervisor, [image.path for image in found])
    return [image.as_dict(used[image.path]) for image in found]


def find_or_none(hypervisor: Hypervisor, name: str) -> Image | None:
    """The image with this name, or whose volume has it, or None."""
    if "/" in name or pools.find_pool(hypervisor, pools.IMAGES) is None:
        return None
    pool = pools.image_pool(hypervisor)
    for attempt in (0, 1):
        for candidate in (name, name + SUFFIX):
            volume = pools.find_volume(pool, candidate)
            if volume is not None:
                # Somebody may be deleting it, or be making it and fail: then it is not there.
                with contextlib.suppress(NotFound), translated(hypervisor.uri):
                    return image_of(volume)
        if attempt == 0:
            # A file that was put there by other means is known only after a look.
            pools.refresh(pool)
    return None


def find(hypervisor: Hypervisor, name: str) -> Image:
    """The image with this name. Raises NotFound, naming the URI."""
    image = find_or_none(hypervisor, name)
    if image is None:
        raise NotFound(
            f"no image named {name[:100]!a} on {hypervisor.uri}",
            "'kvmctl image list' shows those there are; image build, pull and import bring in more",
        )
    return image


def info(hypervisor: Hypervisor, name: str) -> dict[str, Any]:
    """The object of ``image info``; ``backing_chain`` are the files the image itself stands on, nearest first."""
    image = find(hypervisor, name)
    with translated(hypervisor.uri):
        below = dependents.walked(hypervisor, image.path)[1:]
    return {**image.as_dict(used_by(hypervisor, image)), "backing_chain": below}


def used_by(hypervisor: Hypervisor, image: Image) -> list[str]:
    """The VMs whose disks stand on the image, then the paths of volumes that do and belong to no VM."""
    with translated(hypervisor.uri):
        return dependents.by_path(hypervisor, [image.path])[image.path]


def delete(hypervisor: Hypervisor, name: str, *, dry_run: bool = False) -> dict[str, Any]:
    """Delete the image and return what it was. Raises Refused, naming them, while anything stands on it."""
    image = find(hypervisor, name)
    users = used_by(hypervisor, image)
    if users:
        shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
        raise Refused(
            f"the image {image.name} is still the base of {shown}", "delete those first: without it they are lost"
        )
    if not dry_run and not pools.delete_volume(hypervisor, image.pool, image.volume):
        raise NotFound(f"the image {image.name} was deleted by somebody else meanwhile")
    return image.as_dict([])


def check_free(hypervisor: Hypervisor, name: str) -> str:
    """``name`` if a new image may have it. Raises UsageProblem, or Conflict where there is one already."""
    name = name.removesuffix(SUFFIX)
    check_new_name(name, "image")
    there = find_or_none(hypervisor, name)
    if there is not None:
        raise there.taken(hypervisor.uri)
    return name


def publish(
    hypervisor: Hypervisor,
    name: str,
    source: BinaryIO | Path,
    size: int,
    virtual_size: int,
    kind: Literal["qcow2", "iso"],
    progress: Progress,
) -> Image:
    """Upload a checked image as ``name``, and compare what libvirt then sees with what was checked.

    The two can differ only if the file changed meanwhile; then nothing is left and Refused is raised.
    """
    pool = pools.image_pool(hypervisor)
    volume_name = name + (SUFFIX if kind == "qcow2" else ".iso")
    format_: Literal["qcow2", "raw"] = "qcow2" if kind == "qcow2" else "raw"
    with Undo() as undo, translated(hypervisor.uri):
        try:
            # Readable by all, like the disks of a distribution's own images: guests of any user stand on it.
            pools.upload(
                pool,
                volume_name,
                source,
                size,
                format=format_,
                mode="0644",
                progress=progress,
                text=f"uploading {name}",
            )
        except NotFound as error:
            # libvirt says so, too, of a volume that another call is making at this very moment.
            if pools.find_volume(pool, volume_name) is None:
                raise
            raise Conflict(f"the image {name} is being made by somebody else") from error
        undo.add(f"delete volume {volume_name}", lambda: pools.delete_volume(hypervisor, pools.IMAGES, volume_name))
        pools.refresh(pool)
        volume = pools.find_volume(pool, volume_name)
        if volume is None:
            raise KvmctlError(f"the image {name} vanished from {hypervisor.uri} while it was made")
        image = image_of(volume)
        wanted = ("qcow2",) if kind == "qcow2" else ("raw", "iso")
        if image.backing or image.format not in wanted or image.virtual_size_bytes != virtual_size:
            raise Refused(f"the image {name} is not what was checked: its file was changed meanwhile")
        undo.keep()
    return image
