"""Problems for the layer, and the error that rounding is allowed to make on them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from leakypar.surrogate import SurrogateGradient

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DECAYS = ["mixed", "negative", "zero", "one", "above-one"]


@dataclass
class Problem:
    """The tensors of one problem; x is [T, N, C], weight [H, C], decay and biases [H], the rest as named."""

    x: Tensor
    weight: Tensor
    decay: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    threshold: Tensor
    gain: Tensor
    initial_membrane: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, dtype: torch.dtype | None = None, device: str | None = None) -> Problem:
        """A copy of leaves, which record gradients."""
        moved = {
            name: tensor.detach().to(device=device, dtype=dtype, copy=True).requires_grad_()
            for name, tensor in self.tensors().items()
        }
        return Problem(**{field.name: moved.get(field.name) for field in fields(self)})

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
    )
    return problem.to(dtype)


def rounding_margin(problem: Problem, dtype: torch.dtype, rounds_state: bool) -> Tensor:
    """How far from the exact membrane [T, N, H] rounding may carry one computed in `dtype`.

    A running error bound. With A_t = |w| A_{t-1} + |x_t| |W|^T + |b|, which bounds the unclipped membrane and every
    intermediate of a composed scan, each step adds at most

        E_t = |w| E_{t-1} + unit_state (C + 8) A_t + unit_compute 2 A_t

    where the first term is the product's and the step's rounding in the state dtype, and the second is the rounding of
    the projection to the compute dtype (and of the state, where it is rounded there). relu and the clamps of a composed
    scan do not enlarge an error.
    """
    state = torch.float64 if dtype == torch.float64 else torch.float32
    exact = {name: tensor.detach().double().abs() for name, tensor in problem.tensors().items()}
    u = exact["x"] @ exact["weight"].T
    for bias in ("bias_ih", "bias_hh"):
        u = u + exact.get(bias, 0.0)
    compute_units = (4.0 if rounds_state else 2.0) * torch.finfo(dtype).eps / 2
    units = (problem.x.shape[-1] + 8) * torch.finfo(state).eps / 2 + (compute_units if dtype != state else 0.0)
    bound = exact.get("initial_membrane", torch.zeros_like(u[:1].sum(0)))
    error, margins = torch.zeros_like(bound), []
    for u_t in u:
        bound = exact["decay"] * bound + u_t
        error = exact["decay"] * error + units * bound
        margins.append(error)
    return torch.stack(margins) if margins else u


def gradients_at(
    membrane: Tensor, problem: Problem, cotangents: tuple[Tensor, ...], spike_grad: SurrogateGradient
) -> dict[str, Tensor]:
    """The backward recurrence of csrc/leakypar.h in float64, at a given membrane [T, N, H], one step at a time."""
    exact = {name: tensor.detach().double() for name, tensor in problem.tensors().items()}
    of_spikes, of_membrane, r = (cotangent.double() for cotangent in cotangents)
    v = membrane - exact["threshold"]
    through_spike = of_spikes * exact["gain"] * spike_grad.derivative(v)
    g = through_spike + of_membrane
    earlier = torch.cat([exact.get("initial_membrane", torch.zeros_like(r))[None], membrane])[:-1]
    d_u = torch.zeros_like(membrane)
    for t in reversed(range(len(membrane))):
        d_u[t] = (membrane[t] > 0) * (g[t] + r)
        r = exact["decay"] * d_u[t]
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
