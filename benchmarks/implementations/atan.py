"""The spike that rivals without one of their own use: snntorch's default surrogate, the arctangent with alpha = 2."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class ATan(torch.autograd.Function):
    """A spike where ``v = membrane - threshold`` is above 0; its derivative is that of ``arctan(pi v) / pi``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad_spikes * derivative(v)


def derivative(v: Tensor) -> Tensor:
    """``1 / (1 + (pi v)^2)``, in the shape and dtype of ``v``."""
    return 1 / (1 + (math.pi * v).square_())
