"""``snntorch.LeakyParallel`` itself, the module that ours stands in for.

Its spikes are always float32. The layer above wants the compute dtype, so in another dtype they are cast to it, as a
user has to.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.implementations.base import Implementation, Recurrent, register
from leakypar.measuring import THRESHOLD, Problem


class SnntorchParallelLayer(Recurrent):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        import snntorch

        # Built in float32 on the CPU and moved: such is its recurrent matrix's mask, whatever is asked.
        C, H, learn = problem.shape.C, problem.shape.H, problem.learn_decay
        layer = snntorch.LeakyParallel(C, H, beta=0.5, threshold=THRESHOLD, learn_beta=learn)
        self.layer = layer.to(problem.device, problem.parameters.weight.dtype)
        self.adopt(self.layer.rnn, problem)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.layer(x)
        return spikes.to(x.dtype)


@register()
class SnntorchParallel(Implementation):
    name = "snntorch LeakyParallel"
    layer = SnntorchParallelLayer
    package = "snntorch"
    rounds_state = True
    step_by_step = True

    def unsuited(self, problem: Problem) -> str | None:
        if problem.learn_decay and problem.dtype in ("float16", "bfloat16"):
            return "its hook gives the decay's gradient in float32, which autograd refuses"
        return None

    def note(self, problem: Problem) -> str:
        return "" if problem.dtype == "float32" else f"float32 spikes, cast to {problem.dtype}"
