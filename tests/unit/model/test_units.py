"""Sizes and durations as people write them."""

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model.units import GIB, MIB, human_duration, human_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "bare", "size"),
    [
        ("2G", 1, 2 * GIB),
        ("2g", 1, 2 * GIB),
        ("2GiB", 1, 2 * GIB),
        ("2GB", 1, 2 * 10**9),
        ("2048M", 1, 2 * GIB),
        ("1.5GiB", 1, 3 * GIB // 2),
        (" 3 k ", 1, 3072),
        ("512", MIB, 512 * MIB),
        ("20", GIB, 20 * GIB),
        ("7b", GIB, 7),
        ("1T", 1, 1024 * GIB),
        ("0.5", GIB, GIB // 2),
        ("9007199254740993b", 1, 9007199254740993),
        ("4503599627370497.0k", 1, 4503599627370497 * 1024),
        ("8191P", 1, 8191 * 1024**5),
    ],
)
def test_sizes(text: str, bare: int, size: int) -> None:
    assert parse_size(text, bare) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "G", "-1", "-1G", "+1G", "1e3", "0x10", "1,5G", "1.G", ".5G", "1G2", "1 G B", "1ib", "1XB", "nan"),
        *(
            "inf",
            "infG",
            "१G",
            "1\n2",
            "1G\x00",
            "0",
            "0G",
            "0.1",
            "8E",
            "8192P",
            "9" * 40,
            "9" * 400 + ".0G",
            "9" * 5000,
        ),
    ],
)
def test_what_is_no_size_is_a_usage_problem(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_size(text)
    assert caught.value.hint
    assert "\n" not in caught.value.message and caught.value.message.isascii()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("2m", 120), ("30ms", 0.03), ("1h", 3600), ("1d", 86400), ("5", 5), ("1.5s", 1.5), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 year", "1w", "1:30", "nan", "inf", "1e3", "२s", "1s\n2", "9" * 400, "999999d"]
)
def test_what_is_no_duration_is_a_usage_problem(text: str) -> None:
    with pytest.raises(UsageProblem):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (512 * MIB, "512 MiB"),
        (3 * GIB // 2, "1.5 GiB"),
        (1024 * GIB - 5 * MIB, "1 TiB"),
        (2**63 - 1, "8192 PiB"),
    ],
)
def test_human_sizes(size: int | None, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.85, "850 ms"),
        (12.2, "12 s"),
        (119, "119 s"),
        (180, "3 min"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_human_durations(seconds: float | None, text: str) -> None:
    assert human_duration(seconds) == text
