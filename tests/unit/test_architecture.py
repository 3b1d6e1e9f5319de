"""The house's one rule: calls run one way, down. Read from the source, so that no import can hide."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "kvmctl"

# Each part, and the parts below it that it may import.
MAY_IMPORT = {
    "cli": {"cli", "operations", "preflight", "model", "connection", "errors"},
    "operations": {"operations", "preflight", "model", "connection", "errors"},
    "preflight": {"preflight", "model", "connection", "errors"},
    "connection": {"connection", "errors"},
    "model": {"model", "errors"},
    "errors": {"errors"},
}
# What a command's module may not import before its command runs: it would cost every other command.
SLOW = {"libvirt", "libvirt_qemu", "lxml", "rich", "yaml"}
SLOW_PARTS = {"operations", "preflight", "connection"}
# output.py is the commands' own tool: a plain data class from below is all it takes.
CHEAP = {"kvmctl.operations.progress"}
# What output.py imports where there is a bar to be drawn.
LATE = "kvmctl.cli.bar"

SOURCES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str | None:
    """The part of kvmctl that ``module`` belongs to; None for the package itself and for others' modules."""
    names = module.split(".")
    return names[1] if names[0] == "kvmctl" and len(names) > 1 else None


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    names = list(path.relative_to(REPOSITORY).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that ``tree`` imports, by dotted name; ``from a import b`` may mean a module a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """``tree`` without what does not run when the module is imported: functions and TYPE_CHECKING blocks."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return ast.Pass()
            return self.generic_visit(node)

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_the_sources_are_found() -> None:
    assert {"cli", "operations", "preflight", "model", "connection", "errors"} <= {
        part_of(module_of(path)) for path in SOURCES
    }


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_down(path: Path) -> None:
    part = part_of(module_of(path))
    if part is None or part == "__main__":
        return
    assert part in MAY_IMPORT, f"{part} is a part that the table above does not know"
    wrong = [
        name
        for name in imports(parsed(path))
        if name.split(".")[0] == "kvmctl"
        and (part_of(name) or "") in MAY_IMPORT
        and part_of(name) not in MAY_IMPORT[part]
    ]
    assert not wrong, f"{module_of(path)} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_click_and_rich_stay_in_their_places(path: Path) -> None:
    module = module_of(path)
    roots = {name.split(".")[0] for name in imports(parsed(path))}
    assert "click" not in roots or part_of(module) == "cli"
    assert "rich" not in roots or module in ("kvmctl.cli.output", LATE)


@pytest.mark.parametrize("path", [path for path in SOURCES if part_of(module_of(path)) == "cli"], ids=module_of)
def test_commands_import_late(path: Path) -> None:
    early = [
        name
        for name in imports(at_import_time(parsed(path)))
        if (name.split(".")[0] in SLOW and module_of(path) != LATE)
        or name.startswith(LATE)
        or (part_of(name) in SLOW_PARTS and not any(name.startswith(cheap) for cheap in CHEAP))
        or name.startswith("kvmctl.model.xml")
    ]
    assert not early, f"{module_of(path)} imports {early} before its command runs"


@pytest.mark.parametrize("part", ["model"])
def test_the_model_does_no_io(part: str) -> None:
    forbidden = {"libvirt", "subprocess", "socket", "os", "shutil", "pathlib", "tempfile"}
    found = {
        module_of(path): sorted(roots)
        for path in SOURCES
        if part_of(module_of(path)) == part
        and (roots := {name.split(".")[0] for name in imports(parsed(path))} & forbidden)
    }
    assert not found


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["create", "--help"], ["list", "--help"]])
def test_help_loads_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from kvmctl.__main__ import main\n"
        "sys.argv[1:] = sys.argv[1:]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "slow = {'libvirt', 'lxml', 'rich', 'yaml'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.stderr.write(' '.join(sorted(slow)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout
    assert done.stderr == ""


def _texts() -> list[Path]:
    """Every text file that git has or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout.decode()
    found = []
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path.is_file() and b"\0" not in path.read_bytes()[:8192]:
            found.append(path)
    return found


def test_no_file_names_a_place_of_one_machine() -> None:
    """Nobody's home or work folder belongs into the repository."""
    place = re.compile(r"(?<![\w.])/(?:home/(?!\$|\{|[a-z]*[<{$])\w+|work/\w+|root/(?!\.)\w+|Users/\w+)")
    allowed = re.compile(r"/home/(?:user|debian|alice|bob|me|you|NAME|USER)\b")
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match[0]}"
        for path in _texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        for match in place.finditer(line)
        if not allowed.match(match[0])
    ]
    assert not found


def test_files_stay_readable() -> None:
    """A few hundred lines a file: a longer one holds two things."""
    long = {module_of(path): lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 600}
    assert not long
