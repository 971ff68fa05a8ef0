"""spikingjelly's multi-step neurons behind an ``nn.Linear``: ``LIFNode``, and ``ParametricLIFNode`` which learns.

Near relatives: one decay for all neurons (the mean of ours), a spike resets its neuron to zero, and the membrane is not
clipped at zero. spikingjelly 2 picks its own backend: PyTorch on a CPU; on a GPU Triton where that is installed, or its
native kernels where they were built. ``LIF checkpoint`` is its option that saves memory: a layer keeps its input, which
has to be spikes, as bits, and computes the rest again in the backward.
"""

from __future__ import annotations

from importlib import metadata

import torch
from torch import Tensor, nn

from benchmarks.implementations.base import Implementation, Layer, Projected, register
from leakypar.measuring import THRESHOLD, Problem

OLDEST = 2  # its API differs before
STEPS_A_CHECKPOINT = 64


class SpikingjellyLayer(Projected):
    def __init__(self, problem: Problem, plan: str) -> None:
        super().__init__(problem)
        from spikingjelly.activation_based import neuron, surrogate

        node = neuron.ParametricLIFNode if plan == "PLIF" else neuron.LIFNode
        self.neuron = node(
            1 / (1 - problem.parameters.decay.double().mean().item()),
            decay_input=False,
            v_threshold=THRESHOLD,
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
            step_mode="m",
        )
        self.neuron.requires_grad_(problem.learn_decay)
        self.neuron.to(problem.device, problem.parameters.weight.dtype)
        self.run: nn.Module = nn.Sequential(self.linear, self.neuron)
        if plan == "LIF checkpoint":
            from spikingjelly.activation_based import memopt

            chunks = max(1, problem.shape.T // STEPS_A_CHECKPOINT)
            self.run = memopt.checkpoint_module(self.run, compressor=memopt.BitSpikeCompressor(), chunks=chunks)

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.reset()
        spikes: Tensor = self.run(x)
        return spikes


@register("LIF", "PLIF", "LIF checkpoint")
class Spikingjelly(Implementation):
    name = "spikingjelly"
    function = "one decay, reset by a spike, not clipped at zero"
    package = "spikingjelly"
    step_by_step = True

    @property
    def optional(self) -> bool:
        return self.plan == "LIF checkpoint"

    def unavailable(self, device: torch.device) -> str | None:
        missing = super().unavailable(device)
        if missing:
            return missing
        version = metadata.version("spikingjelly")
        if int(version.partition(".")[0]) < OLDEST:
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
