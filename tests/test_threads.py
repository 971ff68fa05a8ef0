"""The CPU's scans on several threads: no race, and the same bits for any number of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import leakypar

from .implementations import CPU, unavailable
from .problems import DTYPES, draw

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("sanitizer", [None, "thread"])
def test_scans(tmp_path: Path, sanitizer: str | None) -> None:
    """tests/threads/scans.cpp compares the bits; under the sanitizer, a race fails it too."""
    program = tmp_path / "scans"
    options = ["-O1", "-g1", f"-fsanitize={sanitizer}"] if sanitizer else ["-O3"]
    sources = [ROOT / "tests" / "threads" / "scans.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    flags = ["-std=c++20", "-ffp-contract=off", "-pthread", *options, f"-I{ROOT / 'csrc'}"]
    subprocess.run([str(COMPILER), *flags, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(unavailable(CPU) is not None, reason=str(unavailable(CPU)))
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layer(dtype: torch.dtype, recompute: bool) -> None:
    """With one input feature and one neuron the products round once, so nothing may depend on the threads."""

    def results() -> list[torch.Tensor]:
        problem = draw(20_000, 40, 1, 1, dtype=dtype).to(dtype, "cpu")
        outputs = leakypar.leaky_parallel(
            **problem.arguments(), return_membrane=True, return_state=True, recompute=recompute
        )
        inputs = [problem.x, problem.initial_membrane]
        return [*outputs, *torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs])]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            for one, other in zip(results(), expected, strict=True):
                assert torch.equal(one, other), threads
    finally:
        torch.set_num_threads(before)
