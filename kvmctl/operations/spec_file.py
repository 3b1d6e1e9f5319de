"""Reading spec files, of this machine: the folder they are in is where their relative paths begin."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kvmctl.errors import NotFound, UsageProblem
from kvmctl.model import spec_text
from kvmctl.model.spec import Spec, beside, from_mapping

_STDIN = "standard input"


def load(path: str) -> tuple[Spec, ...]:
    """The specs in ``path`` (``-``: standard input), one or many; TOML where it ends in ``.toml``, else YAML.

    What comes from standard input may be either. Raises NotFound where there is no such file, and
    UsageProblem, saying where, for what is wrong in it.
    """
    if path == "-":
        data, what, folder = sys.stdin.buffer.read(spec_text.LARGEST_SPEC + 1), _STDIN, Path.cwd()
        documents = _either(data)
    else:
        file = Path(path)
        data, what, folder = _read(file), str(path), file.absolute().parent
        kind: Literal["yaml", "toml"] = "toml" if file.suffix.lower() == ".toml" else "yaml"
        documents = spec_text.read(data, kind, what)
    specs = []
    for number, document in enumerate(documents, 1):
        where = what if len(documents) == 1 else f"{what}, VM {number}"
        spec = beside(from_mapping(document, where), str(folder), str(Path.home()))
        if path == "-" and "-" in (spec.password_file, spec.user_data):
            raise UsageProblem(f"{where}: standard input is the spec already", "name a file")
        specs.append(spec)
    return tuple(specs)


def named(specs: Sequence[Spec], path: str) -> dict[str, Spec]:
    """``specs`` by name. Raises UsageProblem where one has none, or two have the same."""
    found: dict[str, Spec] = {}
    for spec in specs:
        if spec.name is None:
            raise UsageProblem(f"{path}: a VM has no name", "give it the key 'name'")
        if spec.name in found:
            raise UsageProblem(f"{path}: two VMs have the name {spec.name}", "each needs one of its own")
        found[spec.name] = spec
    return found


def only(specs: Sequence[Spec], name: str | None, path: str) -> Spec:
    """The one that ``create`` makes: the only one, or of several the one of that name."""
    if len(specs) == 1:
        return specs[0]
    found = [spec for spec in specs if spec.name == name and name is not None]
    if len(found) != 1:
        raise UsageProblem(f"{path} has {len(specs)} VMs in it", "'kvmctl apply -f' makes all of them")
    return found[0]


def _either(data: bytes) -> tuple[spec_text.Document, ...]:
    try:
        return spec_text.read(data, "yaml", _STDIN)
    except UsageProblem as problem:
        try:
            return spec_text.read(data, "toml", _STDIN)
        except UsageProblem:
            raise problem from None


def _read(file: Path) -> bytes:
    try:
        if file.is_dir():
            raise UsageProblem(f"{str(file)!a} is a directory, not a spec")
        with file.open("rb") as stream:
            return stream.read(spec_text.LARGEST_SPEC + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no spec {str(file)[:200]!a}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageProblem(f"the spec {str(file)[:200]!a} cannot be read: {reason}") from None
