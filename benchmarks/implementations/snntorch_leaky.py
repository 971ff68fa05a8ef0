"""``snntorch.Leaky`` step by step behind an ``nn.Linear``: how most spiking networks are written.

In its best form: the projection is one product over all time, nothing resets the membrane, and the spikes are stacked
once. A near relative: the membrane is not clipped at zero, so neurons remember how far below it they were.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.implementations.base import Implementation, Projected, register
from leakypar.measuring import THRESHOLD, Problem


class SnntorchLeakyLayer(Projected):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        import snntorch

        # snntorch keeps a list of every neuron ever made, and each of these its last membrane.
        snntorch.SpikingNeuron.init()
        beta, learn = problem.parameters.decay.clone(), problem.learn_decay
        neuron = snntorch.Leaky(beta, threshold=THRESHOLD, learn_beta=learn, reset_mechanism="none")
        self.neuron = neuron.to(problem.device)

    def forward(self, x: Tensor) -> Tensor:
        u = self.linear(x)
        membrane = u.new_zeros(u.shape[1:])
        steps = []
        for u_t in u:
            spikes, membrane = self.neuron(u_t, membrane)
            steps.append(spikes)
        return torch.stack(steps).to(x.dtype)

    def parts(self) -> dict[str, nn.Parameter]:
        return {**super().parts(), "decay": self.neuron.beta}


@register()
class SnntorchLeaky(Implementation):
    name = "snntorch Leaky"
    layer = SnntorchLeakyLayer
    function = "not clipped at zero"
    package = "snntorch"
    step_by_step = True
