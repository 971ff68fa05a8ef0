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

COUNT = len(ops.Inputs._fields)


def layer(inputs: ops.Inputs, settings: ops.Settings, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `ops.forward`, which has the same arguments, with the membrane, which the backward reads."""
    request = settings.request
    results: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.leakypar.layer.default(
        *inputs,
        *settings.bounds,
        settings.dropout,
        *(settings.surrogate or ops.NO_GRADIENT),
        outputs | ops.MEMBRANE,
        ops.allow_tf32(inputs.x),
        request.forward,
        request.gemm_chunk,
        request.tiles,
        request.event_rate,
        request.backward,
        request.backward_gemm_chunk,
        request.backward_event_rate,
    )
    return results


def register_derivative(scan: type[torch.autograd.Function]) -> None:
    """Gives the operator the derivative of `autograd._Scan`, whose inputs are those of `layer` above."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, (lower, upper, dropout, kind, p0, p1, outputs, _, *plan) = inputs[:COUNT], inputs[COUNT:]
        method, gemm_chunk, tiles, event_rate, backward, backward_chunk, backward_rate = plan
        request = launch_plan.Request(method, backward, gemm_chunk, backward_chunk, tiles, event_rate, backward_rate)
        settings = ops.Settings((lower, upper), dropout, (kind, p0, p1), None, request)
        scan.setup_context(ctx, (*tensors, settings, outputs), output)

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        of_tensors = scan.backward(ctx, *grads)[:COUNT]
        return (*of_tensors, *(None,) * 15)

    torch.library.register_autograd("leakypar::layer", differentiate, setup_context=setup_context)
