"""The baseline: ``nn.RNN`` with a diagonal recurrent matrix, then a threshold, as snntorch's ``LeakyParallel`` does it.

In its favour, against snntorch's own module: spikes have the compute dtype, not always float32, and there is no product
with a graded-spikes factor of one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.implementations.atan import ATan
from benchmarks.implementations.base import Implementation, Layer, RecurrentLayer, register
from benchmarks.problem import THRESHOLD, Problem


class RNNLayer(RecurrentLayer):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        parameters = problem.parameters
        self.rnn = nn.RNN(
            problem.shape.C,
            problem.shape.H,
            nonlinearity="relu",
            device=problem.device,
            dtype=parameters.weight.dtype,
        )
        self.adopt(self.rnn, problem)
        self.weight_hh.requires_grad_(problem.learn_decay)
        if problem.learn_decay:
            mask = torch.eye(problem.shape.H, device=problem.device, dtype=parameters.weight.dtype)
            self.weight_hh.register_hook(lambda grad: grad * mask)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        membrane, _ = self.rnn(x)
        spikes: Tensor = ATan.apply(membrane - THRESHOLD)  # type: ignore[no-untyped-call]
        return spikes


@register()
class RNN(Implementation):
    name = "nn.RNN"
    rounds_state = True
    step_by_step = True

    def build(self, problem: Problem) -> Layer:
        return RNNLayer(problem)
