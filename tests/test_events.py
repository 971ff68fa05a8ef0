"""The layer on the CPU with an input of events: zeros and one other value, as the spikes of a layer are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import leakypar

from .implementations import CPU, FUSED, run_reference, unavailable
from .problems import DTYPES, Problem, draw
from .test_implementations import check_gradients, check_outputs

pytestmark = pytest.mark.skipif(unavailable(CPU) is not None, reason=str(unavailable(CPU)))
ON_CPU = [implementation for implementation in FUSED if implementation.name in ("cpu", "cpu-recompute")]
on_cpu = pytest.mark.parametrize("implementation", ON_CPU, ids=str)


def with_events(problem: Problem, rate: float, value: float = 1.0) -> Problem:
    """The problem with events for an input, at least one in every batch row so that the value is seen."""
    generator = torch.Generator().manual_seed(5)
    ones = torch.rand(problem.x.shape, generator=generator) < rate
    problem.x = (ones * value).to(problem.x.dtype).requires_grad_()
    return problem


@on_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rate", "value"), [(0.05, 1.0), (0.2, -1.5), (0.35, 1.0), (0.9, 1.0), (0.0, 1.0)])
def test_outputs_and_gradients(implementation, dtype: torch.dtype, rate: float, value: float) -> None:
    problem = with_events(draw(40, 16, 70, 50, dtype=dtype), rate, value)
    check_outputs(implementation, problem, dtype)
    check_gradients(implementation, problem, dtype)


def membrane_of(x: Tensor, weight: Tensor) -> Tensor:
    """relu(W x): no decay, no bias."""
    with torch.no_grad():
        return leakypar.leaky_parallel(x, weight, torch.zeros(len(weight)), return_membrane=True)[1]


def test_few_events_are_added_and_many_are_multiplied() -> None:
    """The bits tell: additions in the order of the features, or those of the dense product."""
    torch.manual_seed(0)
    weight = torch.randn(64, 300)
    for rate, by_events in ((0.05, True), (0.3, True), (0.8, False)):
        x = (torch.rand(10, 64, 300) < rate).float()
        sums = torch.zeros(10, 64, 64)
        for c in range(300):
            sums = sums + x[..., c : c + 1] * weight[:, c]
        dense = F.linear(x, weight).relu()
        membrane = membrane_of(x, weight)
        assert not torch.equal(dense, sums.relu())
        assert torch.equal(membrane, sums.relu() if by_events else dense)


def test_one_other_value_makes_a_dense_input() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 300)
    x = (torch.rand(10, 64, 300) < 0.05).float()
    x[9, 63, 299] = 0.5
    assert torch.equal(membrane_of(x, weight), F.linear(x, weight).relu())


@on_cpu
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_goes_where_a_dense_product_has_it_go(implementation, bad: float) -> None:
    """Zero times infinity is NaN: an input of zero does not hide a weight or a gradient."""

    def results(run, problem: Problem, cotangent: Tensor) -> list[Tensor]:
        _, membrane, _ = run(**problem.arguments())
        inputs = [problem.x, problem.weight, problem.bias_ih]
        return [membrane, *torch.autograd.grad(membrane, inputs, cotangent)]

    for where in ("weight", "gradient"):
        problem = with_events(draw(20, 16, 70, 50, dtype=torch.float32), 0.05)
        cotangent = torch.ones(20, 16, 50)
        (problem.weight.data if where == "weight" else cotangent[3])[7, 11] = bad
        ours, theirs = (results(run, problem, cotangent) for run in (implementation.run, run_reference))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.isfinite(), other.isfinite()), where


def test_views_of_events() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 100)
    x = (torch.rand(20, 32, 100) < 0.1).float()
    wide = torch.full((20, 32, 130), math.nan)
    wide[..., 20:120] = x
    expected = membrane_of(x, weight)
    for view in (wide[..., 20:120], x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(membrane_of(view, weight), expected)
    strided = torch.stack([x, x], dim=-1)[..., 0]  # features apart: left to the dense product
    torch.testing.assert_close(membrane_of(strided, weight), expected)
