"""The pages of docs/ say what the commands say, and their links lead somewhere."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])


def test_commands_pages_and_manuals_are_as_generated() -> None:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["generate"] = generate
    try:
        spec.loader.exec_module(generate)
        wrong = [path.name for path in generate.differences()]
    finally:
        del sys.modules["generate"]
    assert not wrong, "run 'python docs/generate.py'"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    reasons = (REPOSITORY / "docs" / "architecture.md").read_text()
    for dependency in project["dependencies"]:
        name = re.split(r"[<>=~!\[ ;]", dependency)[0]
        assert re.search(rf"^\| {re.escape(name)} \|", reasons, re.MULTILINE), (
            f"docs/architecture.md says nothing of {name}"
        )
