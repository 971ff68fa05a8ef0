"""What every implementation is given: one layer's parameters and several sets of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.shapes import Shape

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
INPUTS = ("spikes", "normal")
SPIKE_RATE = 0.2
THRESHOLD = 1.0

# Input sets are rotated. Together they are larger than the last cache of most machines, so that no call finds its input
# there because the call before it used the same.
ROTATED_BYTES = 64 << 20
MOST_SETS = 8


@dataclass(frozen=True)
class Parameters:
    """The layer's parameters in the dtype that is timed."""

    weight: Tensor  # [H, C]
    bias_ih: Tensor  # [H]
    bias_hh: Tensor  # [H]
    decay: Tensor  # [H], the diagonal of weight_hh


@dataclass(frozen=True)
class InputSet:
    """One input and the gradient that is sent back for it."""

    x: Tensor  # [T, N, C]
    grad_spikes: Tensor  # [T, N, H]


@dataclass(frozen=True)
class Problem:
    """A shape with its parameters, and the inputs that are rotated from call to call."""

    shape: Shape
    dtype: str
    input: str
    device: torch.device
    parameters: Parameters
    sets: tuple[InputSet, ...]
    learn_decay: bool


def set_count(shape: Shape, dtype: str) -> int:
    """How many input sets are rotated for this shape."""
    return max(2, min(MOST_SETS, -(-ROTATED_BYTES // set_bytes(shape, dtype))))


def set_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of one input set."""
    return shape.rows * (shape.C + shape.H) * DTYPES[dtype].itemsize


def make_problem(
    shape: Shape, dtype: str, kind: str, device: torch.device, *, learn_decay: bool = False, seed: int = 0
) -> Problem:
    """Draws a problem whose neurons neither fall silent nor fire at every step, at any shape.

    The weights are scaled by the inputs' second moment, so that the input current of a step has a standard deviation of
    0.5 whatever ``C`` is, against a threshold of 1 and decays between 0.5 and 0.95.

    Args:
        shape: The sizes.
        dtype: A name of :data:`DTYPES`.
        kind: ``"spikes"``: ones at a rate of :data:`SPIKE_RATE`, else zeros. ``"normal"``: dense, standard normal.
        device: Where the tensors live.
        learn_decay: Whether the training step also computes the decay's gradient.
        seed: Of everything that is drawn.

    Raises:
        ValueError: If ``kind`` is neither.
    """
    if kind not in INPUTS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(INPUTS)}")
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    def draw_input() -> Tensor:
        size = (shape.T, shape.N, shape.C)
        if kind == "normal":
            return normal(*size)
        return (torch.rand(size, generator=generator, device=device) < SPIKE_RATE).float()

    target = DTYPES[dtype]
    second_moment = 1.0 if kind == "normal" else SPIKE_RATE
    uniform = torch.rand(shape.H, generator=generator, device=device)
    parameters = Parameters(
        weight=(normal(shape.H, shape.C) * 0.5 / (shape.C * second_moment) ** 0.5).to(target),
        bias_ih=(0.1 * normal(shape.H)).to(target),
        bias_hh=(0.1 * normal(shape.H)).to(target),
        decay=(0.5 + 0.45 * uniform).to(target),
    )
    sets = tuple(
        InputSet(draw_input().to(target), normal(shape.T, shape.N, shape.H).to(target))
        for _ in range(set_count(shape, dtype))
    )
    return Problem(shape, dtype, kind, device, parameters, sets, learn_decay)
