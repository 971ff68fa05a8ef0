"""What the settings of the suite promise: which warnings are errors, what is repeated, what is summed up."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from . import conftest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("module", ["torch.jit._script", "torch", "sympy.core", "snntorch._neurons.leaky"])
@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, UserWarning])
def test_a_warning_of_others_is_no_error(module: str, category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.warn_explicit("within itself", category, "a_file.py", 1, module=module)
    assert [str(warning.message) for warning in shown] == ["within itself"]


@pytest.mark.parametrize("module", ["leakypar", "leakypar.rnn", __name__, "examples.digits.training", "benchmarks"])
@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, UserWarning])
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="ours"):
        warnings.warn_explicit("ours", category, "a_file.py", 1, module=module)


def test_what_torch_warns_of_in_a_call_of_ours_is_an_error() -> None:
    """torch's C++ warns in the name of the Python line that called it."""
    with pytest.raises(UserWarning, match="resiz"):
        torch.add(torch.ones(3), 1, out=torch.ones(2))


def test_examples_are_the_same_in_every_run() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    assert hypothesis.settings.get_profile("repeatable").derandomize
    assert not hypothesis.settings.get_profile("fuzz").derandomize


def test_each_test_begins_with_the_seed() -> None:
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(conftest.SEED)))


OTHERS = """
import pytest
import torch

@pytest.mark.parametrize("n", range(9))
def test_skipped(n): pytest.skip("no device")

def test_leaving(): torch.set_num_threads(torch.get_num_threads() + 1)

def test_finding(): pass
"""


def test_what_is_skipped_is_summed_up_and_what_leaves_a_setting_behind_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_others.py").write_text(OTHERS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run([*command, "-c", str(ROOT / "pyproject.toml")], cwd=ROOT, capture_output=True, text=True)
    assert "    9  no device\n" in result.stdout, result.stdout + result.stderr
    assert result.stdout.count("no device") == 1
    assert re.search(r"^ERROR .*::test_leaving - ", result.stdout, re.MULTILINE), result.stdout
    assert "2 passed, 9 skipped, 1 error" in result.stdout
