"""Finding the image a guest is made from: by name, by file, or by address."""

from pathlib import Path

from kvmctl.connection import Hypervisor, translated
from kvmctl.errors import NotFound
from kvmctl.model import xml
from kvmctl.operations import image_store
from kvmctl.operations.image_store import Image as Image
from kvmctl.operations.progress import Progress
from kvmctl.preflight.image_header import examine


def resolve(hypervisor: Hypervisor, name: str, progress: Progress, *, bring: bool = True) -> Image:
    """The image that ``--image`` names, ready to be stood on.

    A name is an image's; a path (anything with a ``/``) a volume on the hypervisor's host, else a local
    file, which is imported first; an http(s) URL is pulled first, once. Raises NotFound (without ``bring``
    for what would have to be imported or pulled, too), or Refused for an image that names other files or
    is not whole.
    """
    if "://" in name:
        from kvmctl.operations import image_pull

        pulled = image_store.find_or_none(hypervisor, image_pull.name_of(name)) if not bring else None
        if pulled is None and not bring:
            raise _not_brought(hypervisor, name, "pull")
        return (pulled or image_pull.pull_once(hypervisor, name, progress)).check_usable()
    if "/" in name:
        return _by_path(hypervisor, name, progress, bring).check_usable()
    image = image_store.find_or_none(hypervisor, name)
    if image is None:
        hint = "'kvmctl image list' shows those there are; image build, pull and import bring in more"
        if Path(name).is_file():
            hint = f"for the file of that name write ./{name}"
        raise NotFound(f"no image named {name[:100]!a} on {hypervisor.uri}", hint)
    return image.check_usable()


def _not_brought(hypervisor: Hypervisor, name: str, how: str) -> NotFound:
    return NotFound(
        f"the image {name[:200]!a} is not on {hypervisor.uri} yet, and a dry run brings nothing there",
        f"'kvmctl image {how} {name[:200]}' first",
    )


def _by_path(hypervisor: Hypervisor, path: str, progress: Progress, bring: bool) -> Image:
    from kvmctl.operations import image_import, volume_reader

    local = Path(path).expanduser()
    where = path if hypervisor.is_remote else str(local.absolute())
    if where.startswith("/"):
        volume = volume_reader.find_by_path(hypervisor, where)
        if volume is not None:
            with translated(hypervisor.uri):
                image = image_store.image_of(volume, volume.storagePoolLookupByVolume().name())
                text = volume.XMLDesc(0)
            physical = int(xml.parse(text, "storage volume").findtext("physical") or 0)
            examine(volume_reader.opened(volume, physical), physical, image.name)
            return image
    name = image_import.content_name(local, progress)
    known = image_store.find_or_none(hypervisor, name)
    if known is None and not bring:
        raise _not_brought(hypervisor, path, "import")
    return known if known is not None else image_import.import_file(hypervisor, local, name, progress)
