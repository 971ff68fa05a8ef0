"""Problems for the layer, and the error that rounding is allowed to make on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from leakypar.surrogate import SurrogateGradient

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
RECTIFIED = (0.0, math.inf)
# A membrane at 0.9 or -0.45 is rounded to one between the two, in either 16-bit dtype.
BOUNDS = [(-math.inf, math.inf), (-0.45, 0.9), (0.0, 0.9), (0.2, math.inf), (-math.inf, 0.9)]
DECAYS = ["mixed", "negative", "zero", "one", "above-one"]


@dataclass
class Problem:
    """The tensors of one problem; x is [T, N, C], weight [H, C], decay and biases [H], lengths [N]."""

    x: Tensor
    weight: Tensor
    decay: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    threshold: Tensor
    gain: Tensor
    initial_membrane: Tensor | None
    lengths: Tensor | None = None
    membrane_bounds: tuple[float, float] = RECTIFIED

    def tensors(self) -> dict[str, Tensor]:
        """Those that have a gradient."""
        named = {name: value for name, value in self.arguments().items() if isinstance(value, Tensor)}
        return {name: value for name, value in named.items() if name != "lengths"}

    def over(self) -> Tensor:
        """Which steps [T, N, 1] lie beyond their sequence's own."""
        T, N = self.x.shape[:2]
        lengths = torch.full((N,), T) if self.lengths is None else self.lengths.cpu()
        return torch.arange(T).reshape(T, 1, 1) >= lengths.reshape(N, 1)

    def to(self, dtype: torch.dtype | None = None, device: str | None = None) -> Problem:
        """A copy of leaves, which record gradients."""
        moved = {
            name: tensor.detach().to(device=device, dtype=dtype, copy=True).requires_grad_()
            for name, tensor in self.tensors().items()
        }
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Problem(**self.arguments() | moved | {"lengths": lengths})

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def decays(kind: str, H: int, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(H, generator=generator, dtype=torch.float64)
    if kind == "mixed":
        decay = 2 * uniform - 1
        decay[:3] = torch.tensor([0.0, 1.0, -1.0])[: min(H, 3)]
        return decay
    return {"negative": -uniform, "zero": 0 * uniform, "one": 0 * uniform + 1, "above-one": 1 + uniform / 20}[kind]


def draw(
    T: int,
    N: int,
    C: int,
    H: int,
    *,
    dtype: torch.dtype = torch.float64,
    decay: str = "mixed",
    biases: int = 2,
    initial: bool = True,
    per_neuron: bool = True,
    bounds: tuple[float, float] = RECTIFIED,
    lengths: list[int] | None = None,
    seed: int = 0,
) -> Problem:
    """A random problem whose values are exact in `dtype`, drawn on the CPU, about a third of its neurons spiking."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (H,) if per_neuron else ()
    problem = Problem(
        x=normal(T, N, C),
        weight=normal(H, C, scale=max(C, 1) ** -0.5),
        decay=decays(decay, H, generator),
        bias_ih=normal(H, scale=0.1) if biases > 0 else None,
        bias_hh=normal(H, scale=0.1) if biases > 1 else None,
        threshold=0.5 + torch.rand(shape, generator=generator, dtype=torch.float64),
        gain=1.0 + torch.rand(shape, generator=generator, dtype=torch.float64),
        initial_membrane=normal(N, H).abs() if initial else None,
        lengths=None if lengths is None else torch.tensor(lengths),
        membrane_bounds=bounds,
    )
    return problem.to(dtype)


def rounding_margin(problem: Problem, dtype: torch.dtype, rounds_state: bool) -> Tensor:
    """How far from the exact membrane [T, N, H] rounding may carry one computed in `dtype`, before it is stored.

    Infinity where nothing is claimed: from the first step on at which a number inside may overflow. Otherwise a bound
    by induction over the steps. Let fl be rounding to nearest, ties to either side, with gradual underflow, where
    nothing overflows: |fl(a) - a| <= unit |a| + tiny, with unit = eps / 2 and tiny half the smallest subnormal, and
    sums need no tiny. Let

        U_t = |x_t| |W|^T + |b_ih| + |b_hh|,    A_t = max(|w| A_{t-1} + U_t, lower, -upper),    A_0 = |h_0|

    so that A_t bounds the exact membrane, whether it is clipped or not, and whatever a scan composes up to step t. What
    is computed is then at most A_t + |w| E_{t-1} at step t, where E_t is the error:

        E_t = |w| E_{t-1} + n unit_state (A_t + |w| E_{t-1}) + n tiny_state (1 + max A)       every implementation
              + 2 unit U_t + 2 tiny                                              one that stores u in a 16-bit dtype
              or + 4 unit (A_t + |w| E_{t-1}) + 5 tiny                  one that stores the membrane in it (nn.RNN)

    n = C + 8 operations a step: C for the product in any order of its sum, two for the biases, two for the step, and
    four for what composed maps multiply and add again. The decay's powers underflow too: that tiny multiplies a
    membrane, hence max A. A 16-bit u is rounded twice: a product may round partial sums. nn.RNN rounds both products,
    both sums with a bias, and their sum, which are at most U_t, U_t, A_t - U_t + |b|, A_t, A_t: five times, 4 A_t. relu
    and the clamps are 1-Lipschitz and enlarge no error.

    The exact membrane comes from the same loop in float64, so that unit_state includes its unit. Processors' bfloat16
    products take subnormals as zero: there tiny is the smallest normal number.
    """
    state = torch.promote_types(dtype, torch.float32)
    flushes = dtype == torch.bfloat16
    operations = problem.x.shape[-1] + 8
    unit_state = operations * (_unit(state) + _unit(torch.float64))
    tiny_state = operations * _tiny(state, flushes)
    unit, tiny = (0.0, 0.0) if dtype == state else (2 * _unit(dtype), 2 * _tiny(dtype, flushes))
    if rounds_state:
        unit, tiny = 2 * unit, 2.5 * tiny

    exact = {name: tensor.detach().double().abs() for name, tensor in problem.tensors().items()}
    lower, upper = problem.membrane_bounds
    u = exact["x"] @ exact["weight"].T
    for bias in ("bias_ih", "bias_hh"):
        u = u + exact.get(bias, 0.0)
    bound = exact.get("initial_membrane", torch.zeros_like(u[:1].sum(0)))
    largest, error = bound, torch.zeros_like(bound)
    claimed, margins = torch.ones_like(bound, dtype=torch.bool), []
    for over, u_t in zip(problem.over(), u, strict=True):
        before = bound, error
        bound = torch.clamp(exact["decay"] * bound + u_t, min=max(lower, -upper))
        largest = torch.maximum(largest, bound)
        carried = exact["decay"] * error
        reached = bound + carried
        stored = reached if rounds_state else u_t
        error = carried + unit_state * reached + tiny_state * (1 + largest) + unit * stored + tiny
        claimed = claimed & (bound + error < torch.finfo(state).max)
        claimed = claimed & (stored * (1 + unit) < torch.finfo(dtype).max)
        bound, error = (torch.where(over, held, new) for held, new in zip(before, (bound, error), strict=True))
        if rounds_state:  # its recurrent matrix is dense: an infinity times the zeros of another neuron is NaN
            claimed = claimed & claimed.all(-1, keepdim=True)
        margins.append(torch.where(claimed, error, torch.inf))
    return torch.stack(margins) if margins else u


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _tiny(dtype: torch.dtype, flushes: bool) -> float:
    limits = torch.finfo(dtype)
    return limits.smallest_normal if flushes else limits.smallest_normal * limits.eps / 2


def within_margin(value: Tensor, exact: Tensor, margin: Tensor) -> bool:
    """Whether a stored value may be the rounding of a number within the margin of the exact one.

    Rounding is monotone: what lies between exact - margin and exact + margin is stored between the roundings of these
    two. That holds of ties, of subnormals, and of what overflows to infinity when it is stored.
    """
    low, high = ((exact + sign * margin).to(value.dtype) for sign in (-1, 1))
    return bool((((low <= value) & (value <= high)) | margin.isinf()).all())


def gradients_at(
    membrane: Tensor, problem: Problem, cotangents: tuple[Tensor, ...], spike_grad: SurrogateGradient
) -> dict[str, Tensor]:
    """The backward recurrence of csrc/kernels.h in float64, at a given membrane [T, N, H], one step at a time.

    The membrane may be of fewer bits: then the bounds are rounded as it was.
    """
    lower, upper = torch.tensor(problem.membrane_bounds, dtype=membrane.dtype).double()
    passes = (lower < membrane) & (membrane < upper)
    membrane = membrane.double()
    exact = {name: tensor.detach().double() for name, tensor in problem.tensors().items()}
    of_spikes, of_membrane, r = (cotangent.double() for cotangent in cotangents)
    over = problem.over()
    of_spikes, of_membrane = (cotangent.masked_fill(over, 0) for cotangent in (of_spikes, of_membrane))
    v = membrane - exact["threshold"]
    through_spike = of_spikes * exact["gain"] * spike_grad.derivative(v)
    g = through_spike + of_membrane
    earlier = torch.cat([exact.get("initial_membrane", torch.zeros_like(r))[None], membrane])[:-1]
    d_u = torch.zeros_like(membrane)
    for t in reversed(range(len(membrane))):
        d_u[t] = (passes[t] & ~over[t]) * (g[t] + r)
        r = torch.where(over[t], r, exact["decay"] * d_u[t])
    sums = {
        "x": d_u @ exact["weight"],
        "weight": torch.einsum("tnh,tnc->hc", d_u, exact["x"]),
        "decay": d_u * earlier,
        "bias_ih": d_u,
        "bias_hh": d_u,
        "threshold": -through_spike,
        "gain": of_spikes * (v > 0),
        "initial_membrane": r,
    }
    return {name: sums[name].sum_to_size(tensor.shape) for name, tensor in exact.items()}
