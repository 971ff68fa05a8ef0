"""The error that rounding is allowed to make: enough for every right implementation, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from .implementations import Implementation, run_reference
from .problems import DECAYS, DTYPES, Problem, draw, rounding_margin, within_margin
from .test_implementations import check_outputs

SIXTEEN_BITS = [torch.float16, torch.bfloat16]


def scaled(problem: Problem, dtype: torch.dtype, *, x: float = 1.0, weight: float = 1.0) -> Problem:
    """The problem with its input and weights times powers of two, rounded to `dtype`: among its subnormals too."""
    factors = {"x": x, "weight": weight}
    tensors = {name: tensor.detach().double() * factors.get(name, 1.0) for name, tensor in problem.tensors().items()}
    return replace(problem, **tensors).to(dtype)


def exact_membrane(problem: Problem) -> Tensor:
    return run_reference(**problem.to(torch.float64).arguments())[1].detach()


HARD = {
    # Some |W x| are float16 subnormals, whose spacing does not shrink with them.
    "a projection among float16's subnormals": lambda dtype: draw(
        61, 2, 1, 9, dtype=dtype, decay="zero", biases=0, seed=1
    ),
    # Each step is half a subnormal's spacing or so, and the membrane their sum.
    "a membrane of the smallest numbers": lambda dtype: scaled(
        draw(40, 2, 3, 7, dtype=dtype, decay="one", biases=0, initial=False),
        dtype,
        x=torch.finfo(dtype).smallest_normal * 2.0**-2,
    ),
    # Halves and quarters: many W x lie half way between two 16-bit numbers.
    "ties": lambda dtype: replace(
        draw(40, 2, 2, 7, dtype=dtype, decay="one", biases=0, initial=False),
        x=(torch.arange(160).reshape(40, 2, 2) % 11 - 5).to(dtype),
        weight=(1 + torch.arange(14).reshape(7, 2) * torch.finfo(dtype).eps / 2).to(dtype),
        threshold=torch.full((7,), 3.0, dtype=dtype),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", HARD)
def test_hard_numbers(implementation: Implementation, name: str, dtype: torch.dtype) -> None:
    check_outputs(implementation, HARD[name](dtype), dtype)


def test_a_membrane_that_overflows_when_it_is_stored(implementation: Implementation) -> None:
    """In float16, where the state goes on beyond 65504: infinity is stored, and the spikes are still right."""
    problem = draw(40, 2, 3, 7, dtype=torch.float16, decay="one", seed=2)
    problem = scaled(problem, torch.float16, x=2.0**12)
    exact = exact_membrane(problem)
    assert 0.01 < (exact > 70000).double().mean() < 0.9
    margin = rounding_margin(problem, torch.float16, implementation.rounds_state)
    assert bool(margin[exact > 70000].isfinite().any()) == (not implementation.rounds_state)
    check_outputs(implementation, problem, torch.float16)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
@pytest.mark.parametrize("exponent", [0, -12, -22])
@pytest.mark.parametrize("away", [-1, 1])
def test_the_worst_rounding_stays_within(dtype: torch.dtype, exponent: int, away: int, decay: str) -> None:
    """Every projection rounded to the same side, which is worse than to nearest, twice; the rest in float64."""
    problem = scaled(draw(50, 2, 3, 9, dtype=dtype, decay=decay, biases=0, seed=3), dtype, x=2.0**exponent)
    exact = problem.to(torch.float64)
    u = exact.x.detach() @ exact.weight.detach().T
    nearest = u.to(dtype)
    other = torch.nextafter(nearest, torch.full_like(nearest, away * torch.inf))
    rounded = torch.where((nearest.double() - u) * away < 0, other, nearest).double()
    moved = replace(exact, x=rounded, weight=torch.eye(9, dtype=torch.float64))
    distance = (exact_membrane(moved) - exact_membrane(problem)).abs()
    assert distance.max() > 0
    assert bool((distance <= rounding_margin(problem, dtype, rounds_state=False)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_lies_outside_is_refused(dtype: torch.dtype) -> None:
    """Two margins and a spacing away is outside. Inside is what a plain product and scan give, and their rounding."""
    problem = draw(40, 2, 3, 7, dtype=dtype, decay="mixed")
    exact, margin = exact_membrane(problem), rounding_margin(problem, dtype, rounds_state=False)
    assert within_margin(exact.to(dtype), exact, margin)
    assert within_margin((exact + margin).to(dtype), exact, margin)
    spacing = torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
    for sign in (-1, 1):
        moved = exact.clone()
        moved[17, 1, 3] += sign * (2 * margin + spacing)[17, 1, 3]
        assert not within_margin(moved.to(dtype), exact, margin)
    moved[17, 1, 3] = torch.nan
    assert not within_margin(moved.to(dtype), exact, margin)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_margin_is_of_the_size_of_rounding(dtype: torch.dtype) -> None:
    """A margin that forgave a missing bias, a missing gain or a step too late would prove nothing."""
    problem = draw(40, 2, 3, 7, dtype=dtype, decay="mixed")
    margin = rounding_margin(problem, dtype, rounds_state=False)
    assert margin.median() <= (64 if dtype in SIXTEEN_BITS else 512) * torch.finfo(dtype).eps
    exact = exact_membrane(problem)
    without = replace(problem, bias_hh=None)
    assert not within_margin(exact_membrane(without).to(dtype), exact, margin)
    assert not within_margin(exact.roll(1, 0).to(dtype), exact, margin)


def test_nothing_is_claimed_once_a_number_inside_overflows() -> None:
    problem = draw(9, 1, 2, 3, dtype=torch.float16, decay="zero", biases=0)
    problem.x.data[4] = 60000.0
    problem.weight.data[1] = torch.tensor([4.0, 4.0])
    margin = rounding_margin(problem, torch.float16, rounds_state=False)[:, 0]
    assert bool(margin[:4].isfinite().all())
    assert bool(margin[4:, 1].isinf().all())
