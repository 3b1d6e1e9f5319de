"""Which parts of a file are sent when it is uploaded."""

import io
from pathlib import Path

from kvmctl.model.units import MIB
from kvmctl.operations import pools

KIB = 1024


def written(path: Path, size: int, *pieces: tuple[int, int]) -> Path:
    """A file of ``size`` bytes with data only at ``pieces``, (offset, end) in bytes."""
    with path.open("wb") as file:
        for offset, end in pieces:
            file.seek(offset)
            file.write(b"x" * (end - offset))
        file.truncate(size)
    return path


def extents(path: Path, start: int, end: int) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(pools.extents(file, start, end))


def test_large_holes_are_passed_over_and_small_ones_are_not(tmp_path: Path) -> None:
    file = written(
        *(tmp_path / "f", 20 * MIB),
        *((0, MIB), (MIB + 64 * KIB, 2 * MIB), (8 * MIB, 9 * MIB), (19 * MIB, 20 * MIB)),
    )
    assert extents(file, 0, 20 * MIB) == [(0, 2 * MIB), (8 * MIB, 9 * MIB), (19 * MIB, 20 * MIB)]
    # From a place in the middle on, be it data or hole.
    assert extents(file, MIB // 2, 10 * MIB)[0] == (MIB // 2, 2 * MIB)
    assert extents(file, 4 * MIB, 9 * MIB) == [(8 * MIB, 9 * MIB)]


def test_the_last_byte_is_sent_so_that_the_file_is_as_long(tmp_path: Path) -> None:
    size = 20 * MIB
    assert extents(written(tmp_path / "a", size, (0, MIB)), 0, size) == [(0, MIB), (size - 1, size)]
    assert extents(written(tmp_path / "b", size), 0, size) == [(size - 1, size)]
    assert extents(written(tmp_path / "c", size, (size - MIB, size - 4 * KIB)), 0, size) == [(size - MIB, size)]


def test_nothing_and_what_has_no_holes(tmp_path: Path) -> None:
    assert extents(written(tmp_path / "f", 100), 100, 100) == []
    assert list(pools.extents(io.BytesIO(b"x" * 100), 10, 100)) == [(10, 100)]
