from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import ecosystem

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_has_the_table_of_the_recorded_outcomes() -> None:
    subprocess.run([sys.executable, "-m", "tools.ecosystem", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"a::b[1]": "passed", "a::b[2]": "skipped"}, "yes"),
        ({"a::b[1]": "passed", "a::b[2]": "failed"}, "no: 1 of 2 failed"),
        ({"a::b[1]": "skipped", "a::c": "passed"}, "not run"),
        ({}, "not run"),
    ],
)
def test_a_cell_is_what_the_tests_found(outcomes: dict[str, str], expected: str) -> None:
    assert ecosystem.cell(outcomes, "a::b") == expected


def test_every_row_has_tests() -> None:
    files = {row.tests.split("::")[0] for row in ecosystem.ROWS}
    for row in ecosystem.ROWS:
        file, _, name = row.tests.partition("::")
        assert f"def {name}" in (ROOT / "tests/ecosystem" / f"{file}.py").read_text()
    assert files == {path.stem for path in (ROOT / "tests/ecosystem").glob("test_*.py")}
