"""Whether a case fits a machine, asked before it is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from benchmarks.implementations.rnn import RNN
from benchmarks.problem import DTYPES, make_problem, set_bytes, set_count
from benchmarks.shapes import Shape
from benchmarks.timing import clock_for

USABLE_MEMORY = 0.8
PROBED_STEPS = 8
PROBES = 5


def unfit(shape: Shape, dtype: str, pass_: str, device: torch.device, *, call_limit: float) -> str | None:
    """Says why a case does not fit, or None when it does.

    Args:
        shape: The sizes.
        dtype: A name of :data:`~benchmarks.problem.DTYPES`.
        pass_: ``"forward"`` or ``"training"``.
        device: Where it would run.
        call_limit: The most seconds that one call may take.
    """
    need, available = memory_estimate(shape, dtype, pass_), available_memory(device)
    if need > USABLE_MEMORY * available:
        return f"needs an estimated {need / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB free"
    seconds = seconds_estimate(shape, dtype, pass_, device)
    if seconds > call_limit:
        return f"an estimated {seconds:.1f} s a call for nn.RNN, over the limit of {call_limit:g} s"
    return None


def seconds_estimate(shape: Shape, dtype: str, pass_: str, device: torch.device) -> float:
    """Seconds that a call of nn.RNN, the slowest, takes: a few time steps are timed. Its cost is linear in them."""
    steps = min(shape.T, PROBED_STEPS)
    problem = make_problem(dataclasses.replace(shape, T=steps), dtype, "spikes", device)
    layer, inputs = RNN().build(problem), problem.sets[0]

    def call() -> None:
        if pass_ == "training":
            torch.autograd.backward(layer(inputs.x), inputs.grad_spikes)
        else:
            with torch.no_grad():
                layer(inputs.x)

    clock = clock_for(device)
    return min(clock.time(call).device for _ in range(PROBES)) * shape.T / steps


def memory_estimate(shape: Shape, dtype: str, pass_: str) -> int:
    """Bytes at the worst moment: the rotated inputs, and the float64 reference or the hungriest implementation."""
    inputs, outputs = shape.rows * shape.C, shape.rows * shape.H
    rotated = set_count(shape, dtype) * set_bytes(shape, dtype)
    reference = 8 * (inputs + 4 * outputs if pass_ == "forward" else 2 * inputs + 10 * outputs)
    timed = DTYPES[dtype].itemsize * (4 * outputs if pass_ == "forward" else inputs + 10 * outputs)
    return rotated + reference + timed


def available_memory(device: torch.device) -> int:
    """Free bytes on a GPU, or what the system could give to a new process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        raise OSError("available memory: /proc/meminfo does not exist; the CPU benchmark runs on Linux")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
