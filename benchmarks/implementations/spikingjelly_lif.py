"""spikingjelly's multi-step neurons behind an ``nn.Linear``: ``LIFNode``, and ``ParametricLIFNode`` which learns.

Near relatives: one decay for all neurons (the mean of ours), a spike resets its neuron to zero, and the membrane is not
clipped at zero. spikingjelly 2 picks its own backend: PyTorch on a CPU; on a GPU Triton where that is installed, or its
native kernels where they were built.
"""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from benchmarks.implementations.base import Implementation, Layer, present, register
from benchmarks.problem import THRESHOLD, Problem

OLDEST = 2  # its API differs before


class SpikingjellyLayer(Layer):
    def __init__(self, problem: Problem, plan: str) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        parameters = problem.parameters
        dtype = parameters.weight.dtype
        self.linear = nn.Linear(problem.shape.C, problem.shape.H, device=problem.device, dtype=dtype)
        with torch.no_grad():
            self.linear.weight.copy_(parameters.weight)
            self.linear.bias.copy_(parameters.bias_ih + parameters.bias_hh)
        tau = 1 / (1 - parameters.decay.double().mean().item())
        options = {
            "decay_input": False,
            "v_threshold": THRESHOLD,
            "surrogate_function": surrogate.ATan(),
            "detach_reset": True,
            "step_mode": "m",
        }
        if plan == "LIF":
            self.neuron = neuron.LIFNode(tau, **options)
        else:
            self.neuron = neuron.ParametricLIFNode(tau, **options)
            self.neuron.requires_grad_(problem.learn_decay)
        self.neuron.to(problem.device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.reset()
        spikes: Tensor = self.neuron(self.linear(x))
        return spikes

    def gradients(self) -> dict[str, Tensor]:
        return present(weight=self.linear.weight.grad, bias_ih=self.linear.bias.grad)


@register("LIF", "PLIF")
class Spikingjelly(Implementation):
    name = "spikingjelly"
    function = "one decay, reset by a spike, not clipped at zero"
    step_by_step = True

    def unavailable(self, device: torch.device) -> str | None:
        if not find_spec("spikingjelly"):
            return "spikingjelly is not installed"
        version = metadata.version("spikingjelly")
        if int(re.match(r"\d+", version)[0]) < OLDEST:  # type: ignore[index]  # a version begins with a number
            return f"spikingjelly is at {version}, expected {OLDEST} or later"
        try:
            import spikingjelly.activation_based.neuron  # noqa: F401
        except ImportError as error:
            return f"spikingjelly cannot be imported: {error}"
        return None

    def note(self, problem: Problem) -> str:
        backend = "PyTorch" if problem.device.type == "cpu" else "its own choice of backend"
        return f"{metadata.version('spikingjelly')}, {backend}"

    def build(self, problem: Problem) -> Layer:
        return SpikingjellyLayer(problem, self.plan)
