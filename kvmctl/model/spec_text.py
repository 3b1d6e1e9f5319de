"""The text of a spec file as plain mappings: YAML documents or TOML, with nothing in them that could do harm.

Neither format reaches outside its text: YAML's tags make no objects, its aliases are refused (a few lines
of them unfold to gigabytes), and a key that stands there twice is an error instead of the last one winning.
"""

import tomllib
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from kvmctl.errors import UsageProblem

# A spec is written by hand; what is larger than this is no spec.
LARGEST_SPEC = 1024 * 1024
MOST_DOCUMENTS = 1000
# PyYAML and tomllib call themselves for each level; a spec has three.
DEEPEST = 20

Format = Literal["yaml", "toml"]
Document = Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, endless depth, and keys given twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(problem="an alias (*), which a spec may not have", problem_mark=mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="too many levels", problem_mark=self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name[:40]!a} a second time", problem_mark=key.start_mark)
            if name is not None:
                seen.add(name)
        return super().construct_mapping(node, deep)


def read(data: bytes, format_: Format, what: str) -> tuple[Document, ...]:
    """The VMs in ``data``, a mapping each, unchecked: YAML documents, or TOML; ``vm`` holds a list of several.

    ``what`` names the file in errors. Raises UsageProblem, with the line, for what is no such text.
    """
    if len(data) > LARGEST_SPEC:
        raise UsageProblem(f"{what} is larger than 1 MiB, which no spec is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageProblem(f"{what} is not UTF-8 text") from None
    documents = _toml(text, what) if format_ == "toml" else _yaml(text, what)
    found: list[Document] = []
    for number, document in enumerate(documents, 1):
        where = what if len(documents) == 1 else f"{what}, document {number}"
        found += _vms(document, where)
    if not found:
        raise UsageProblem(f"{what} has no VM in it", "see docs/spec.md for what a spec looks like")
    if len(found) > MOST_DOCUMENTS:
        raise UsageProblem(f"{what} has {len(found)} VMs in it, more than {MOST_DOCUMENTS}")
    return tuple(found)


def _yaml(text: str, what: str) -> list[Any]:
    try:
        # The loader makes nothing but scalars, lists and mappings.
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageProblem(f"{what}{line}: {' '.join(str(error.problem or 'no YAML').split())[:200]}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date or number that looks like one and is none (2024-13-45).
        raise UsageProblem(f"{what} is no YAML: {' '.join(str(error).split())[:200]}") from None


def _toml(text: str, what: str) -> list[Any]:
    try:
        return [tomllib.loads(text)]
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise UsageProblem(f"{what} is no TOML: {' '.join(str(error).split())[:200]}") from None


def _vms(document: Any, where: str) -> list[Document]:
    if not isinstance(document, dict):
        raise UsageProblem(f"{where} is {_kind(document)}, not a mapping of keys to values", "see docs/spec.md")
    if "vm" not in document:
        return [document] if document else []
    vms, others = document["vm"], [key for key in document if key != "vm"]
    if others:
        raise UsageProblem(f"{where}: beside 'vm' stands {str(others[0])[:40]!a}", "put it into each VM")
    if not isinstance(vms, list) or not all(isinstance(vm, dict) for vm in vms):
        raise UsageProblem(f"{where}: 'vm' is a list of VMs, each a mapping")
    return vms


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the text {str(value)[:40]!a}"
