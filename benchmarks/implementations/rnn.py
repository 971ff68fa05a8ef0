"""The baseline: ``nn.RNN`` with a diagonal recurrent matrix, then a threshold, as snntorch's ``LeakyParallel`` does it.

In its favour, against snntorch's own module: spikes have the compute dtype, not always float32, and there is no product
with a graded-spikes factor of one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.implementations.base import Implementation, Recurrent, register
from leakypar.measuring import THRESHOLD, Problem


class ATan(torch.autograd.Function):
    """A spike where ``v = membrane - threshold`` is above 0, with snntorch's default surrogate (alpha = 2)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> Tensor:
        return grad_spikes * atan_derivative(*ctx.saved_tensors)


def atan_derivative(v: Tensor) -> Tensor:
    """That of ``arctan(pi v) / pi``, ``1 / (1 + (pi v)^2)``, in the shape and dtype of ``v``."""
    return 1 / (1 + (math.pi * v).square_())


class RNNLayer(Recurrent):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        to: dict[str, Any] = {"device": problem.device, "dtype": problem.parameters.weight.dtype}
        self.rnn = nn.RNN(problem.shape.C, problem.shape.H, nonlinearity="relu", **to)
        self.adopt(self.rnn, problem)
        decay = self.adopted["decay"].requires_grad_(problem.learn_decay)
        if problem.learn_decay:
            mask = torch.eye(problem.shape.H, **to)
            decay.register_hook(lambda grad: grad * mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        membrane, _ = self.rnn(x)
        spikes: Tensor = ATan.apply(membrane - THRESHOLD)  # type: ignore[no-untyped-call]
        return spikes


@register()
class RNN(Implementation):
    name = "nn.RNN"
    layer = RNNLayer
    rounds_state = True
    step_by_step = True
