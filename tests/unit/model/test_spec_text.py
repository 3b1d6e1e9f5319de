"""Spec files as text: what they may be, and what in them is refused."""

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import spec_text


def read(text: str, format_: str = "yaml") -> list[dict[str, object]]:
    kind: spec_text.Format = "toml" if format_ == "toml" else "yaml"
    return [dict(document) for document in spec_text.read(text.encode(), kind, "x.yaml")]


@pytest.mark.parametrize(
    ("text", "format_", "names"),
    [
        ("name: a", "yaml", ["a"]),
        ("---\nname: a\n---\nname: b\n", "yaml", ["a", "b"]),
        ("---\n---\nname: a\n---\n", "yaml", ["a"]),
        ("vm:\n- name: a\n- {name: b}\n", "yaml", ["a", "b"]),
        ('{"name": "a"}', "yaml", ["a"]),
        ("\ufeffname: a", "yaml", ["a"]),
        ('name = "a"', "toml", ["a"]),
        ('[[vm]]\nname = "a"\n[[vm]]\nname = "b"', "toml", ["a", "b"]),
    ],
)
def test_one_or_many(text: str, format_: str, names: list[str]) -> None:
    assert [document["name"] for document in read(text, format_)] == names


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no VM"),
        ("# nothing", "no VM"),
        ("- name: a", "a list, not a mapping"),
        ("just text", "not a mapping"),
        ("name: [", "line 1"),
        ("name: a\nname: b", "line 2: the key 'name' a second time"),
        (BOMB, "line 2: an alias"),
        ("a: &a\n  b: *a", "an alias"),
        ("!!python/object/apply:os.system ['true']", "constructor"),
        ("name: !!python/name:os.system", "constructor"),
        ("[" * 100, "too many levels"),
        ("{" * 5000, "too many levels"),
        ("a: " + "[" * 50 + "]" * 50, "too many levels"),
        ("name: 2024-13-45", "no YAML"),
        ("name: \x1b", "no YAML"),
        ("vm: 3", "'vm' is a list"),
        ("vm: []\nname: a", "beside 'vm' stands 'name'"),
        ("{[1, 2]: 3}", "line 1"),
        ("? {a: b}\n: c", "line 1"),
    ],
)
def test_what_is_refused_in_yaml(text: str, said: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        read(text)
    assert said in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "no TOML: Invalid value"),
        ('name = "a"\nname = "b"', "no TOML"),
        ("", "no VM"),
        ("a = " + "[" * 5000, "no TOML"),
        ('vm = "a"', "'vm' is a list"),
    ],
)
def test_what_is_refused_in_toml(text: str, said: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        read(text, "toml")
    assert said in caught.value.message


def test_size_and_encoding() -> None:
    with pytest.raises(UsageProblem, match="larger than 1 MiB"):
        spec_text.read(b"#" * (spec_text.LARGEST_SPEC + 1), "yaml", "x")
    with pytest.raises(UsageProblem, match="UTF-8"):
        spec_text.read(b"name: \xff\xfe", "yaml", "x")
    with pytest.raises(UsageProblem, match="more than 1000"):
        read("---\nname: a\n" * 1001)
