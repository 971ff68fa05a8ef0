"""``snntorch.Leaky`` step by step behind an ``nn.Linear``: how most spiking networks are written.

In its best form: the projection is one product over all time, nothing resets the membrane, and the spikes are stacked
once. A near relative: the membrane is not clipped at zero, so neurons remember how far below it they were.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from benchmarks.implementations.base import Implementation, Layer, present, register
from benchmarks.problem import THRESHOLD, Problem


class SnntorchLeakyLayer(Layer):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        import snntorch

        # snntorch keeps a list of every neuron ever made, and each of these its last membrane.
        snntorch.SpikingNeuron.init()
        parameters = problem.parameters
        self.linear = nn.Linear(problem.shape.C, problem.shape.H, device=problem.device, dtype=parameters.weight.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(parameters.weight)
            self.linear.bias.copy_(parameters.bias_ih + parameters.bias_hh)
        self.neuron = snntorch.Leaky(
            parameters.decay.clone(),
            threshold=THRESHOLD,
            learn_beta=problem.learn_decay,
            reset_mechanism="none",
        ).to(problem.device)

    def forward(self, x: Tensor) -> Tensor:
        u = self.linear(x)
        membrane = u.new_zeros(u.shape[1:])
        steps = []
        for u_t in u:
            spikes, membrane = self.neuron(u_t, membrane)
            steps.append(spikes)
        return torch.stack(steps).to(x.dtype)

    def gradients(self) -> dict[str, Tensor]:
        return present(weight=self.linear.weight.grad, bias_ih=self.linear.bias.grad, decay=self.neuron.beta.grad)


@register()
class SnntorchLeaky(Implementation):
    name = "snntorch Leaky"
    function = "not clipped at zero"
    step_by_step = True

    def unavailable(self, device: torch.device) -> str | None:
        return None if find_spec("snntorch") else "snntorch is not installed"

    def build(self, problem: Problem) -> Layer:
        return SnntorchLeakyLayer(problem)
