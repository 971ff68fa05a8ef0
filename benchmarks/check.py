"""A rival is timed only once it has computed the layer.

The layer in float64 (``leakypar.reference``, a plain loop over time) is the judge, on the very tensors that are timed.
A spike may differ from it only where the membrane is so near the threshold that rounding decides, and only so often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from leakypar import reference
from leakypar.measuring import THRESHOLD, InputSet, Problem


class WrongResultError(ValueError):
    """An implementation does not compute what it says it computes."""


class Tolerance(NamedTuple):
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


class Reference(NamedTuple):
    """The layer in float64: ``membrane [T, N, H]``, and each gradient by name (none for a forward pass)."""

    membrane: Tensor
    gradients: dict[str, Tensor]


class Errors(NamedTuple):
    """What was found: the share of spikes that differ, and the largest relative error of a gradient."""

    spike_mismatch: float
    gradient_error: float | None


def compute_reference(problem: Problem, inputs: InputSet, *, training: bool) -> Reference:
    """Runs the layer in float64.

    Raises:
        ValueError: If the neurons are almost all silent or almost all firing, so that spikes would prove nothing.
    """
    # Detached: a tensor that is float64 already would be the problem's own.
    values = {"x": inputs.x, **problem.parameters._asdict()}
    leaves = {name: value.detach().double().requires_grad_(training) for name, value in values.items()}
    spikes, membrane = reference.leaky_parallel(**leaves, threshold=THRESHOLD, return_membrane=True)
    if not 0.01 < (rate := spikes.mean().item()) < 0.99:
        raise ValueError(f"spike rate: got {rate:.3f}, expected one between 0.01 and 0.99, to mean much")
    if training:
        torch.autograd.backward(spikes, inputs.grad_spikes.double())
    return Reference(membrane.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})


def compare(
    spikes: Tensor, gradients: Mapping[str, Tensor], problem: Problem, expected: Reference, tolerance: Tolerance
) -> Errors:
    """Compares spikes ``[T, N, H]`` and gradients, by name and none for a forward pass, with the reference's.

    Raises:
        WrongResultError: If they differ by more than the tolerance; the message says where and by how much.
    """
    membrane, dtype = expected.membrane, problem.parameters.weight.dtype
    if spikes.shape != membrane.shape or spikes.dtype != dtype:
        got = f"{list(spikes.shape)} {spikes.dtype}"
        raise WrongResultError(f"spikes: got {got}, expected {list(membrane.shape)} {dtype}")
    if not ((spikes == 0) | (spikes == 1)).all():
        raise WrongResultError("spikes: some are neither 0 nor 1")
    differs = (spikes == 1) != (membrane > THRESHOLD)
    distance, share = (membrane - THRESHOLD).abs()[differs], differs.double().mean().item()
    if distance.numel() and distance.max() > tolerance.margin:
        raise WrongResultError(
            f"spikes: {share:.2e} of them differ, up to {distance.max().item():.2e} from the threshold; "
            f"rounding may decide within {tolerance.margin:.0e}"
        )
    if share > tolerance.share:
        raise WrongResultError(f"spikes: {share:.2e} of them differ, of which {tolerance.share:.0e} may")
    errors = {}
    for name, gradient in gradients.items():
        true = expected.gradients[name]
        if gradient.shape != true.shape:
            raise WrongResultError(f"gradient of {name}: got {list(gradient.shape)}, expected {list(true.shape)}")
        errors[name] = float((gradient.double() - true).norm() / true.norm())
        if not errors[name] <= tolerance.gradient:  # a NaN is not
            error = f"relative error {errors[name]:.2e}, at most {tolerance.gradient:.0e} expected"
            raise WrongResultError(f"gradient of {name}: {error}")
    return Errors(share, max(errors.values(), default=None))


def tolerance_for(dtype: str, *, tf32: bool, rounds_state: bool) -> Tolerance:
    """The tolerance of a dtype; ``tf32`` when float32 products use TF32 on this device."""
    precision = "tf32" if tf32 and dtype == "float32" else dtype
    return (TOLERANCES_ROUNDED_STATE if rounds_state else TOLERANCES)[precision]
