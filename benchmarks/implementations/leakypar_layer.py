"""Ours: ``leakypar.LeakyParallel`` on its fused kernels, once for each plan, and on its ``nn.RNN`` backend."""

from __future__ import annotations

import torch
from torch import Tensor

import leakypar
from benchmarks.implementations.base import Implementation, Layer, present, register
from benchmarks.problem import DTYPES, THRESHOLD, Problem
from leakypar import ops


class LeakyParallelLayer(Layer):
    def __init__(self, problem: Problem, backend: str, plan: ops.Scan | None) -> None:
        super().__init__()
        parameters = problem.parameters
        self.layer = leakypar.LeakyParallel(
            problem.shape.C,
            problem.shape.H,
            beta=0.5,
            threshold=THRESHOLD,
            learn_beta=problem.learn_decay,
            device=problem.device,
            dtype=parameters.weight.dtype,
            backend=backend,
            plan=plan,
        )
        named = dict(self.layer.named_parameters())
        self.weight_ih, self.weight_hh = named["rnn.weight_ih_l0"], named["rnn.weight_hh_l0"]
        self.bias_ih, self.bias_hh = named["rnn.bias_ih_l0"], named["rnn.bias_hh_l0"]
        with torch.no_grad():
            self.weight_ih.copy_(parameters.weight)
            self.weight_hh.copy_(torch.diag(parameters.decay))
            self.bias_ih.copy_(parameters.bias_ih)
            self.bias_hh.copy_(parameters.bias_hh)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.layer(x)
        return spikes

    def gradients(self) -> dict[str, Tensor]:
        decay = self.weight_hh.grad
        return present(
            weight=self.weight_ih.grad,
            bias_ih=self.bias_ih.grad,
            bias_hh=self.bias_hh.grad,
            decay=None if decay is None else decay.diagonal(),
        )


SCANS: dict[str, ops.Scan | None] = {"auto": None, "lane": "lane", "split": "split"}


@register(*SCANS)
class Fused(Implementation):
    """The fused kernels. ``auto`` is what a user gets; the others are the plans it picks from on a GPU."""

    name = "leakypar fused"

    def applies(self, device: torch.device) -> bool:
        return device.type != "cpu" or self.plan == "auto"  # the CPU has one plan

    def unavailable(self, device: torch.device) -> str | None:
        return None if ops.is_available(device.type) else f"leakypar was built without kernels for {device.type}"

    def note(self, problem: Problem) -> str:
        if self.plan != "auto":
            return ""
        T, N, C, H = problem.shape.T, problem.shape.N, problem.shape.C, problem.shape.H
        plan = leakypar.plan(T, N, C, H, dtype=DTYPES[problem.dtype], device=problem.device)
        chunks = f"{plan.chunk_steps} steps a chunk"
        return chunks if problem.device.type == "cpu" else f"{plan.scan_forward}, {plan.scan_backward}, {chunks}"

    def build(self, problem: Problem) -> Layer:
        return LeakyParallelLayer(problem, "fused", SCANS[self.plan])


@register()
class ThroughRNN(Implementation):
    """Our module over ``nn.RNN``: what the module itself adds to the baseline."""

    name = "leakypar rnn"
    rounds_state = True
    optional = True

    def build(self, problem: Problem) -> Layer:
        return LeakyParallelLayer(problem, "rnn", None)
