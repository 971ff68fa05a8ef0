"""``python -m benchmarks.once``: a few calls of the fused layer and nothing else, for a profiler to watch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.environment import set_tf32
from benchmarks.implementations import all_implementations
from benchmarks.problem import DTYPES, make_problem
from benchmarks.shapes import parse_shape

CALLS = 2  # the first loads the module


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs training steps of one plan at one shape."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.once", description="Training steps, for a profiler.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--shape", type=parse_shape, required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--plan", choices=("auto", "lane", "split", "fused"), default="auto")
    options = parser.parse_args(arguments)

    set_tf32(True)
    device = torch.device(options.device)
    label = f"leakypar fused ({options.plan})"
    implementation = next(found for found in all_implementations() if found.label == label)
    lack = implementation.unavailable(device)
    if lack is not None:
        parser.error(lack)
    problem = make_problem(options.shape, options.dtype, "spikes", device)
    layer = implementation.build(problem)
    inputs = problem.sets[0]
    inputs.x.requires_grad_()
    for _ in range(CALLS):
        torch.autograd.backward(layer(inputs.x), inputs.grad_spikes)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
