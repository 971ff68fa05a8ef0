"""Each kernel of each type once, in few and small launches: what `make gpu` runs under compute-sanitizer's tools."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import leakypar

from .implementations import Implementation
from .problems import DTYPES, draw
from .test_implementations import check_gradients, check_outputs

pytestmark = pytest.mark.sanitizer

# Rows of an odd width and of an even one, which wide accesses take; more steps than a look-back block holds.
SHAPES = [(70, 2, 5, 37), (70, 2, 8, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layer(fused_implementation: Implementation, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    problem = draw(*shape, dtype=dtype)
    check_outputs(fused_implementation, problem, dtype)
    check_gradients(fused_implementation, problem, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_dropout(fused_implementation: Implementation, shape: tuple[int, int, int, int]) -> None:
    problem = draw(*shape, dtype=torch.bfloat16).to(torch.bfloat16, fused_implementation.device)

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        spikes, *_ = fused_implementation.run(**problem.arguments(), dropout=0.5)
        return spikes, *torch.autograd.grad(spikes.sum(), list(problem.tensors().values()), allow_unused=True)

    first, second = run(), run()
    assert 0 < first[0].count_nonzero() < first[0].numel()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_fused_kernel_in_tf32(fused_implementation: Implementation) -> None:
    """On a CUDA device alone is its plan free to be that, and its result near the one of strict float32."""
    if fused_implementation.name != "cuda-fused":
        pytest.skip("TF32 is of CUDA devices")
    problem = draw(70, 2, 8, 64, dtype=torch.float32).to(torch.float32, "cuda")
    _, expected, _ = fused_implementation.run(**problem.arguments())
    torch.backends.cudnn.rnn.fp32_precision = "tf32"  # the fixture puts it back
    _, membrane = leakypar.leaky_parallel(**problem.arguments(), plan="project_scan", return_membrane=True)
    assert ((membrane - expected).norm() / expected.norm()).item() < 2e-3
