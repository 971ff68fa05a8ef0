"""``snntorch.LinearLeaky``: a projection, then the membrane as a convolution in time, all steps at once.

A near relative: the membrane is not clipped at zero, which makes it linear and a convolution possible. Its kernel is
``exp(-k / tau)``, so its tau is set to keep per step what ours keeps. In its best form: the kernel is cut off after 256
steps, where the longest memory of the problem has faded to two millionths, and cost no longer grows with ``T`` squared.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.implementations.base import Implementation, Projected, register
from leakypar.measuring import THRESHOLD, Problem

KERNEL_STEPS = 256


class LinearLeakyLayer(Projected):
    def __init__(self, problem: Problem) -> None:
        from snntorch import LinearLeaky

        parameters = problem.parameters
        layer = LinearLeaky(
            1 + parameters.decay.float().log(),  # tau = 1 / (1 - beta), and exp(-1 / tau) is the decay
            problem.shape.C,
            problem.shape.H,
            device=problem.device,
            dtype=parameters.weight.dtype,
            threshold=THRESHOLD,
            learn_beta=problem.learn_decay,
            kernel_truncation_steps=KERNEL_STEPS,
        ).to(problem.device, parameters.weight.dtype)
        super().__init__(problem, layer.linear)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.layer(x)[0]
        # It keeps both until the next call, which would find them held already when its memory is measured.
        self.layer.spk = self.layer.mem = None
        return spikes.to(x.dtype)


@register()
class SnntorchLinearLeaky(Implementation):
    name = "snntorch LinearLeaky"
    layer = LinearLeakyLayer
    function = f"not clipped at zero, {KERNEL_STEPS} steps of memory"
    package = "snntorch"
