"""``snntorch.LeakyParallel`` itself, the module that ours stands in for.

Its spikes are always float32. The layer above wants the compute dtype, so in another dtype they are cast to it, as a
user has to.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.implementations.base import Implementation, Layer, RecurrentLayer, register
from benchmarks.problem import THRESHOLD, Problem


class SnntorchParallelLayer(RecurrentLayer):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        import snntorch

        parameters = problem.parameters
        # Built in float32 on the CPU and moved: such is its recurrent matrix's mask, whatever is asked.
        layer = snntorch.LeakyParallel(
            problem.shape.C,
            problem.shape.H,
            beta=0.5,
            threshold=THRESHOLD,
            learn_beta=problem.learn_decay,
        )
        self.layer = layer.to(problem.device, parameters.weight.dtype)
        self.adopt(self.layer.rnn, problem)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.layer(x)
        return spikes.to(x.dtype)


@register()
class SnntorchParallel(Implementation):
    name = "snntorch LeakyParallel"
    rounds_state = True
    step_by_step = True

    def unavailable(self, device: torch.device) -> str | None:
        return None if find_spec("snntorch") else "snntorch is not installed"

    def unsuited(self, problem: Problem) -> str | None:
        if problem.learn_decay and problem.dtype in ("float16", "bfloat16"):
            return "its hook gives the decay's gradient in float32, which autograd refuses"
        return None

    def note(self, problem: Problem) -> str:
        return "" if problem.dtype == "float32" else f"float32 spikes, cast to {problem.dtype}"

    def build(self, problem: Problem) -> Layer:
        return SnntorchParallelLayer(problem)
