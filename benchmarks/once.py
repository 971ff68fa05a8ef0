"""``python -m benchmarks.once``: a few calls of the fused layer and nothing else, for a profiler to watch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

import torch

from benchmarks.environment import set_tf32
from benchmarks.implementations.leakypar_layer import LeakyParallelLayer
from benchmarks.problem import DTYPES, make_problem
from benchmarks.shapes import parse_shape
from leakypar import launch_plan, ops

CALLS = 2  # the first loads the module
PLANS = ("auto", *get_args(launch_plan.Method))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs training steps of some plans at one shape."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.once", description="Training steps, for a profiler.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--shape", type=parse_shape, required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--plans", default="auto", metavar="NAMES", help=f"some of {','.join(PLANS)}")
    options = parser.parse_args(arguments)
    plans = options.plans.split(",")
    unknown = set(plans) - set(PLANS)
    if unknown:
        parser.error(f"--plans: got {', '.join(sorted(unknown))}, expected some of {', '.join(PLANS)}")

    set_tf32(True)
    device = torch.device(options.device)
    if not ops.is_available(device.type):
        parser.error(ops.unavailable_reason(device.type))
    problem = make_problem(options.shape, options.dtype, "spikes", device)
    inputs = problem.sets[0]
    inputs.x.requires_grad_()
    for plan in plans:
        layer = LeakyParallelLayer(problem, "fused", None)
        layer.layer.plan = None if plan == "auto" else plan
        for _ in range(CALLS):
            torch.autograd.backward(layer(inputs.x), inputs.grad_spikes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
