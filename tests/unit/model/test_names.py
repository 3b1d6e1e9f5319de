"""Names kvmctl gives, and foreign ones made harmless."""

import unicodedata

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model.names import check_new_name, harmless


@pytest.mark.parametrize("name", ["a", "web-1", "A.b_c-9", "0a", "a" * 63, "1.2", "deadbeef"])
def test_good_names(name: str) -> None:
    assert check_new_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "../x",
            "-rf",
            "a b",
            ".hidden",
            "_a",
            "a/b",
            "a" * 64,
            "a" * 300,
            "12345",
            "x\n",
            "x\0",
            "ä",
            "a\u202eb",
        ),
        *("\u009b2J", "\x1b[2J", "６", "$(id)", "a;b", "a'b", '"', "<x>", "&amp;", "*", "a\ud800"),
        "6e6b8c4e-0b06-4a44-9cb0-0d6b8f1e5a11",
        "6e6b8c4e0b064a449cb00d6b8f1e5a11",
    ],
)
def test_bad_names_are_told_harmlessly(name: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        check_new_name(name)
    assert caught.value.message.isascii() and caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    assert caught.value.hint


def test_the_kind_of_thing_is_named() -> None:
    with pytest.raises(UsageProblem, match="network"):
        check_new_name("a b", "network")


@pytest.mark.parametrize("text", ["web", "grün", "名前", "a b", "", "é", "naïve – “quoted”"])
def test_ordinary_text_stays(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\u009b2J", "\\x9b2J"),
        ("a\u202eb", "a\\u202eb"),
        ("\u200b", "\\u200b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("a\u00a0b", "a b"),
        ("\u2028", "\\u2028"),
        ("\x7f", "\\x7f"),
    ],
)
def test_what_could_steer_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_no_character_at_all_gets_through_that_could() -> None:
    for code in range(0x110000):
        char = chr(code)
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"):
            assert char not in harmless(char), hex(code)
