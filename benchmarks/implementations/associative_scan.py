"""PyTorch's own ``associative_scan``, given the algebra of ``csrc/math/clamp_affine.h``.

A step is the map ``h -> max(a h + b, lo)`` with ``a`` the decay, ``b`` the projected input and ``lo = 0``. Decays here
are not negative, so that the upper clamp never binds and three numbers make a map. The backward is a second scan, of
linear maps with time reversed: the gradient that ``associative_scan`` would derive by itself takes memory that grows
with ``T`` squared, and is not that of maps whose parts depend on each other.

In its best form on each device: on a GPU ``"pointwise"``, compiled to one kernel together with what surrounds it; on a
CPU, which has no such kernel, ``"generic"``, a tree of whole-tensor operations.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.implementations.base import Implementation, OwnParameters, register
from benchmarks.implementations.rnn import atan_derivative
from leakypar.measuring import THRESHOLD, Problem

Map = tuple[Tensor, ...]


def compose(first: Map, then: Map) -> Map:
    """The clamp-affine map that applies ``first`` and then ``then``; each is ``(a, b, lo)``."""
    (a1, b1, lo1), (a2, b2, lo2) = first, then
    return a2 * a1, a2 * b1 + b2, torch.maximum(a2 * lo1 + b2, lo2)


def compose_linear(first: Map, then: Map) -> Map:
    """The linear map that applies ``first`` and then ``then``; each is ``(a, b)``."""
    (a1, b1), (a2, b2) = first, then
    return a2 * a1, a2 * b1 + b2


def scan_forward(u: Tensor, decay: Tensor, combine_mode: str) -> tuple[Tensor, Tensor]:
    """Spikes and membrane ``[T, N, H]`` in the dtype of ``u [T, N, H]``, scanned in float32 or better."""
    from torch._higher_order_ops import associative_scan

    b = u.to(torch.promote_types(u.dtype, torch.float32))
    # The compiled scan wants every part in one shape; the tree broadcasts, and works less.
    a = decay.to(b.dtype).expand(b.shape if combine_mode == "pointwise" else (len(b), 1, len(decay)))
    _, b, lo = associative_scan(compose, (a, b, torch.zeros_like(b)), 0, combine_mode=combine_mode)
    membrane = torch.maximum(b, lo)  # the maps, applied to a membrane of zero
    return (membrane > THRESHOLD).to(u.dtype), membrane.to(u.dtype)


def scan_backward(
    grad_spikes: Tensor, membrane: Tensor, decay: Tensor, combine_mode: str, want_decay: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``u [T, N, H]`` and, if wanted, of ``decay [H]``."""
    from torch._higher_order_ops import associative_scan

    h = membrane.to(torch.promote_types(membrane.dtype, torch.float32))
    b = torch.where(h > 0, grad_spikes * atan_derivative(h - THRESHOLD), 0.0)
    a = torch.where(h > 0, decay.to(h.dtype), 0.0)
    _, grad_u = associative_scan(compose_linear, (a, b), 0, reverse=True, combine_mode=combine_mode)
    grad_decay = (grad_u[1:] * h[:-1]).sum((0, 1)).to(decay.dtype) if want_decay else None
    return grad_u.to(membrane.dtype), grad_decay


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, decay: Tensor, layer: AssociativeScanLayer) -> Tensor:
        spikes, membrane = layer.scan_forward(u, decay, layer.combine_mode)
        ctx.save_for_backward(membrane, decay)
        ctx.layer = layer
        return spikes

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        layer = ctx.layer
        grads = layer.scan_backward(grad_spikes, *ctx.saved_tensors, layer.combine_mode, ctx.needs_input_grad[1])
        return *grads, None


class AssociativeScanLayer(OwnParameters):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.combine_mode = "generic"
        self.scan_forward, self.scan_backward = scan_forward, scan_backward
        if problem.device.type == "cuda":
            self.combine_mode = "pointwise"
            self.scan_forward = torch.compile(scan_forward, dynamic=False)
            self.scan_backward = torch.compile(scan_backward, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        u = F.linear(x, self.weight, self.bias_ih + self.bias_hh)
        spikes: Tensor = _Scan.apply(u, self.decay, self)  # type: ignore[no-untyped-call]
        return spikes


@register()
class AssociativeScan(Implementation):
    name = "associative_scan"
    layer = AssociativeScanLayer

    def unavailable(self, device: torch.device) -> str | None:
        if not hasattr(torch._higher_order_ops, "associative_scan"):
            return f"torch {torch.__version__} has no associative_scan"
        if device.type == "cuda" and not find_spec("triton"):
            return "triton, which compiles the scan, is not installed"
        return None

    def note(self, problem: Problem) -> str:
        return "compiled" if problem.device.type == "cuda" else "a tree of tensor operations"
