"""A rival is timed only once it has computed the layer.

The layer in float64 (``leakypar.reference``, a plain loop over time) is the judge, on the very tensors that are timed.
A spike may differ from it only where the membrane is so near the threshold that rounding decides, and only so often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.problem import THRESHOLD, InputSet, Problem
from leakypar import reference


class WrongResultError(ValueError):
    """An implementation does not compute what it says it computes."""


@dataclass(frozen=True)
class Tolerance:
    """How far rounding may move a result.

    Attributes:
        margin: Distance of the float64 membrane from the threshold within which a spike may come out either way.
        share: Share of all elements that may do so.
        gradient: Norm of a gradient's error over the norm of the gradient.
    """

    margin: float
    share: float
    gradient: float


# Several times what is seen. A gradient's error is mostly that of neurons whose membrane rounds to the other side of
# zero, where relu's derivative jumps: a share s of them moves it by about sqrt(s).
TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-7, 1e-9),
    "float32": Tolerance(1e-4, 1e-5, 1e-3),
    "tf32": Tolerance(1e-2, 2e-3, 5e-2),
    "float16": Tolerance(5e-3, 1e-3, 5e-2),
    "bfloat16": Tolerance(3e-2, 2e-3, 6e-2),
}
# Where the membrane is rounded at every step, errors add up over 1 / (1 - decay) steps, and a gradient that is summed
# over time in 16 bits loses what is small beside the sum.
TOLERANCES_ROUNDED_STATE = TOLERANCES | {
    "tf32": Tolerance(3e-2, 5e-3, 1e-1),
    "float16": Tolerance(2e-2, 2e-3, 1.5e-1),
    "bfloat16": Tolerance(2e-1, 1e-2, 4e-1),
}


@dataclass(frozen=True)
class Reference:
    """The layer in float64: ``membrane [T, N, H]``, and each gradient by name (none for a forward pass)."""

    membrane: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Errors:
    """What was found: the share of spikes that differ, and the largest relative error of a gradient."""

    spikes: float
    gradient: float | None


def compute_reference(problem: Problem, inputs: InputSet, *, training: bool) -> Reference:
    """Runs the layer in float64.

    Raises:
        ValueError: If the neurons are almost all silent or almost all firing, so that spikes would prove nothing.
    """
    # Detached: a tensor that is float64 already would be the problem's own.
    parameters = {name: value.detach().double() for name, value in vars(problem.parameters).items()}
    leaves = {"x": inputs.x.detach().double(), **parameters}
    for leaf in leaves.values():
        leaf.requires_grad_(training)
    spikes, membrane = reference.leaky_parallel(**leaves, threshold=THRESHOLD, return_membrane=True)
    rate = spikes.mean().item()
    if not 0.01 < rate < 0.99:
        raise ValueError(
            f"spike rate: got {rate:.3f}, expected one between 0.01 and 0.99, for the comparison to mean much"
        )
    gradients = {}
    if training:
        torch.autograd.backward(spikes, inputs.grad_spikes.double())
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return Reference(membrane.detach(), gradients)


def compare(
    spikes: Tensor, gradients: Mapping[str, Tensor], problem: Problem, expected: Reference, tolerance: Tolerance
) -> Errors:
    """Compares one implementation's results with the reference's.

    Args:
        spikes: ``[T, N, H]``, zeros and ones.
        gradients: By the reference's names; empty for a forward pass.
        problem: What was computed.
        expected: What should come out.
        tolerance: By how much it may differ.

    Raises:
        WrongResultError: If it differs by more; the message says where and by how much.
    """
    membrane = expected.membrane
    if spikes.shape != membrane.shape or spikes.dtype != problem.parameters.weight.dtype:
        raise WrongResultError(
            f"spikes: got {list(spikes.shape)} {spikes.dtype}, "
            f"expected {list(membrane.shape)} {problem.parameters.weight.dtype}"
        )
    if not ((spikes == 0) | (spikes == 1)).all():
        raise WrongResultError("spikes: some are neither 0 nor 1")
    differs = (spikes == 1) != (membrane > THRESHOLD)
    distance = (membrane - THRESHOLD).abs()[differs]
    share = differs.double().mean().item()
    if distance.numel() and distance.max() > tolerance.margin:
        raise WrongResultError(
            f"spikes: {share:.2e} of them differ, up to {distance.max().item():.2e} from the threshold; "
            f"rounding may decide within {tolerance.margin:.0e}"
        )
    if share > tolerance.share:
        raise WrongResultError(f"spikes: {share:.2e} of them differ, of which {tolerance.share:.0e} may")
    errors = {name: _gradient_error(name, gradients[name], expected.gradients[name]) for name in gradients}
    for name, error in errors.items():
        if not error <= tolerance.gradient:  # a NaN is not
            raise WrongResultError(
                f"gradient of {name}: relative error {error:.2e}, at most {tolerance.gradient:.0e} expected"
            )
    return Errors(share, max(errors.values(), default=None))


def tolerance_for(dtype: str, *, tf32: bool, rounds_state: bool) -> Tolerance:
    """The tolerance of a dtype; ``tf32`` when float32 products use TF32 on this device."""
    precision = "tf32" if tf32 and dtype == "float32" else dtype
    return (TOLERANCES_ROUNDED_STATE if rounds_state else TOLERANCES)[precision]


def _gradient_error(name: str, got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        raise WrongResultError(f"gradient of {name}: got {list(got.shape)}, expected {list(expected.shape)}")
    return float((got.double() - expected).norm() / expected.norm())
