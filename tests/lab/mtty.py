"""The kernel's sample of a mediated device, a PCI card with serial ports that no hardware is behind.

Debian's kernel has what such devices need, but none that would work without their card. So this one is compiled
from the kernel's own source (samples/vfio-mdev/mtty.c), against the headers of the very kernel that loads it.
"""

import os
import re
import tempfile
from pathlib import Path

from tests.lab import images
from tests.lab.process import run


def module(kernel: str) -> Path:
    """mtty.ko for the package ``kernel`` (``linux-image-...=VERSION``); built the first time, in half a minute."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _build(kernel, Path(place))
            (Path(place) / "source" / "mtty.ko").rename(folder / "mtty.ko")

    return images.kept("mtty", [kernel, Path(__file__).read_bytes()], build) / "mtty.ko"


def _build(kernel: str, place: Path) -> None:
    name, _, version = kernel.partition("=")
    headers = name.replace("linux-image-", "linux-headers-")
    needs = run(["apt-cache", "depends", "--important", f"{headers}={version}"]).stdout
    root = place / "root"
    root.mkdir()
    for package in (f"{headers}={version}", *re.findall(r"(linux-headers-\S+-common|linux-kbuild-\S+)", needs)):
        unpacked = images.unpack(package, place / package.partition("=")[0])
        run(["cp", "--archive", f"{unpacked}/.", str(root)])
    tree = root / "usr/src" / headers
    # It names the place where its package would be installed.
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    release = re.match(r"[0-9]+\.[0-9]+", version)
    assert release is not None
    packed = images.unpack(f"linux-source-{release[0]}={version}", place / "packed")
    archive = next(packed.glob("usr/src/linux-source-*.tar.xz"))
    source = place / "source"
    source.mkdir()
    wanted = f"{archive.name.removesuffix('.tar.xz')}/samples/vfio-mdev/mtty.c"
    run(["tar", "-xf", str(archive), "-C", str(source), "--strip-components=3", "--occurrence=1", wanted], timeout=300)
    (source / "Makefile").write_text("obj-m := mtty.o\n")
    # Which compiler Debian took does not matter to a module this small.
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
    run(["make", "-C", str(tree), f"M={source}", "CC=gcc", "modules"], env=environment, timeout=300)
    run(["strip", "--strip-debug", str(source / "mtty.ko")])
