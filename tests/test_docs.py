"""The pages: every link leads somewhere, every block of Python runs, every public name is in the reference."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import leakypar

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
OPTIONAL = ("snntorch", "torchao")
BLOCK = re.compile(r"^( *)(?:<!-- setup\n(.*?)-->|```python\n(.*?)```)", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    missing = [link[1] for link in LINK.finditer(page.read_text()) if not (page.parent / link[1]).exists()]
    assert not missing


def blocks(page: Path) -> list[str]:
    """What a reader would run, in order, with what a comment of the page sets up before it."""
    found = BLOCK.finditer(page.read_text())
    return [re.sub(rf"^{block[1]}", "", block[2] or block[3], flags=re.MULTILINE) for block in found]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_code(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each page is one program."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "a_page"}
    try:
        for block in blocks(page):
            exec(compile(block, name(page), "exec"), scope)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"leakypar\.(\w+)", reference))
    public = {each for each in leakypar.__all__ if not each.startswith("__")}
    assert public <= documented, public - documented


def test_the_two_commands_are_what_ci_runs() -> None:
    """`.ci/run` reads them from the README, where nothing else says that their section may not go."""
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("an sdist has no .ci")
    text = script.read_text()
    begin = text.index("readme_commands() {")
    function = text[begin : text.index("\n}\n", begin) + 3]
    read = subprocess.run(
        ["bash", "-c", f"{function}readme_commands"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert read.stdout.split("\n") == ["make demo", "make test", ""]
