"""The CPU's kernels on several threads: no race, and the same bits for any number of them."""

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
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


PROGRAMS = {"scans": "scan_*.cpp", "events": "events.cpp"}  # with what of csrc/cpu they run


def run(name: str, folder: Path, *options: str) -> str:
    """What a program of tests/threads, compiled with these options, prints last: a checksum of its results."""
    program = folder / name
    sources = [ROOT / "tests" / "threads" / f"{name}.cpp", *sorted((ROOT / "csrc" / "cpu").glob(PROGRAMS[name]))]
    flags = ["-std=c++20", "-ffp-contract=off", "-pthread", *options, f"-I{ROOT / 'csrc'}"]
    subprocess.run([str(COMPILER), *flags, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


@needs_compiler
@pytest.mark.parametrize("name", PROGRAMS)
def test_results_do_not_depend_on_threads_or_vectors(name: str, tmp_path: Path) -> None:
    """The program compares the bits of threads; its checksums are compared for every width of vectors here."""
    checksums = {width: run(name, tmp_path, "-O1", f"-DLEAKYPAR_WIDEST_VECTORS={width}") for width in (16, 32, 64)}
    assert len(set(checksums.values())) == 1, checksums


@needs_compiler
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_races(name: str, tmp_path: Path) -> None:
    """Work is shared out before vectors are chosen: the narrowest, which compile soonest, show every race."""
    run(name, tmp_path, "-O1", "-g1", "-fsanitize=thread", "-DLEAKYPAR_WIDEST_VECTORS=16")


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
