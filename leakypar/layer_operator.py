"""The layer's forward as one operator that has a derivative, for torch.export.

An exported program keeps operators, and none of Python's autograd functions: a gradient that one of those defines would
be lost. `torch.ops.leakypar.layer` is the forward operator again, implemented in `csrc/torch` like it, with what the
backward needs to know among its arguments. Eager calls do not use it, whose derivative is looked up in Python at every
call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import launch_plan, ops


def layer(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    threshold: Tensor,
    gain: Tensor,
    initial_membrane: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | None,
    bounds: ops.Bounds,
    dropout: float,
    surrogate: tuple[int, float, float],
    outputs: int,
    request: launch_plan.Request,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `ops.forward`, with the membrane, which the backward reads.

    Args:
        x: as in `ops.forward`, and all that follow to `dropout`.
        weight: see there.
        decay: see there.
        bias_ih: see there.
        bias_hh: see there.
        threshold: see there.
        gain: see there.
        initial_membrane: see there.
        lengths: see there.
        seed: see there.
        bounds: see there.
        dropout: see there.
        surrogate: kind and two parameters, as in `ops.backward`.
        outputs: the bits of the outputs that the caller takes.
        request: what is forced of the plan.
    """
    results: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.leakypar.layer.default(
        x,
        weight,
        decay,
        bias_ih,
        bias_hh,
        threshold,
        gain,
        initial_membrane,
        lengths,
        seed,
        *bounds,
        dropout,
        *surrogate,
        outputs | ops.MEMBRANE,
        ops.allow_tf32(x),
        request.forward,
        request.gemm_chunk,
        request.tiles,
        request.backward,
        request.backward_gemm_chunk,
    )
    return results


def register_derivative(scan: type[torch.autograd.Function]) -> None:
    """Gives the operator the derivative of `autograd._Scan`, whose inputs are those of `layer` above."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, (lower, upper, dropout, surrogate, p0, p1, outputs, _, *plan) = inputs[:10], inputs[10:]
        method, gemm_chunk, tiles, backward, backward_chunk = plan
        request = launch_plan.Request(method, backward, gemm_chunk, backward_chunk, tiles)
        kernel = surrogate, p0, p1
        scan.setup_context(ctx, (*tensors, (lower, upper), dropout, kernel, outputs, None, request), output)

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        of_tensors = scan.backward(ctx, *grads)[:10]
        return (*of_tensors, *(None,) * 13)

    torch.library.register_autograd("leakypar::layer", differentiate, setup_context=setup_context)
