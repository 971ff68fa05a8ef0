"""Ours: ``leakypar.LeakyParallel`` on its fused kernels, each way to run them."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

import leakypar
from benchmarks.implementations.base import Implementation, Layer, Recurrent, register
from leakypar import launch_plan, ops
from leakypar.measuring import DTYPES, THRESHOLD, Problem


class LeakyParallelLayer(Recurrent):
    def __init__(self, problem: Problem, **options: Any) -> None:
        super().__init__()
        self.layer = leakypar.LeakyParallel(
            *(problem.shape.C, problem.shape.H, 0.5),
            threshold=THRESHOLD,
            learn_beta=problem.learn_decay,
            device=problem.device,
            dtype=problem.parameters.weight.dtype,
            **options,
        )
        self.adopt(self.layer.rnn, problem)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.layer(x)
        return spikes


RECOMPUTE: dict[str, Any] = {"recompute": True}
DENSE: dict[str, Any] = {"binary_input": False}
PLANS: dict[str, dict[str, Any]] = {"auto": {}, "recompute": RECOMPUTE}
OF_A_GPU: dict[str, dict[str, Any]] = {name: {"plan": name} for name in get_args(launch_plan.Method)}
OF_A_CPU: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "dense recompute": DENSE | RECOMPUTE,
    "events": {"plan": "events"},
}
PLANS |= OF_A_GPU | OF_A_CPU


@register(*PLANS)
class Fused(Implementation):
    """The fused kernels. ``auto`` is what a user gets.

    ``sequential``, ``look_back`` and ``project_scan`` are the methods it picks from on a GPU. ``recompute`` keeps no
    membrane for the backward. On a CPU, which looks for zeros and ones, ``dense`` does not, and ``events`` takes their
    sums at any rate.
    """

    name = "leakypar fused"
    backend = "fused"

    @property
    def optional(self) -> bool:
        return self.plan in OF_A_CPU

    def applies(self, device: torch.device) -> bool:
        return self.plan not in (OF_A_GPU if device.type == "cpu" else OF_A_CPU)

    def unavailable(self, device: torch.device) -> str | None:
        return None if ops.is_available(device.type) else f"leakypar was built without kernels for {device.type}"

    def unsuited(self, problem: Problem) -> str | None:
        tf32 = problem.dtype == "float32" and torch.backends.cudnn.allow_tf32
        if self.plan != "project_scan" or tf32 or problem.dtype in ("float16", "bfloat16"):
            return None
        return "needs matrix instructions: float16, bfloat16, or float32 with TF32"

    def note(self, problem: Problem) -> str:
        if self.plan != "auto":
            return ""
        sizes = (getattr(problem.shape, size) for size in "TNCH")
        plan = leakypar.plan(*sizes, dtype=DTYPES[problem.dtype], device=problem.device)
        chunks = f"{plan.gemm_chunk} steps a chunk"
        return chunks if problem.device.type == "cpu" else f"{plan.forward}, {plan.backward}, {chunks}"

    def build(self, problem: Problem) -> Layer:
        return LeakyParallelLayer(problem, backend="fused", **PLANS[self.plan])
