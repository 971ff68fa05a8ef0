"""Whether a case fits a machine, and an implementation its time, asked before they are tried."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from benchmarks.implementations import Implementation
from benchmarks.problem import DTYPES, make_problem, set_bytes, set_count
from benchmarks.shapes import Shape
from benchmarks.timing import clock_for

USABLE_MEMORY = 0.8
# A probe's share of all steps, and the fewest: what a call takes once is then little beside what its steps take.
PROBED_SHARE = 1 / 32
FEWEST_PROBED_STEPS = 16
PROBES = 3


class Limits:
    """The call limit, and the cases in which an implementation has passed it: it is not tried in larger ones.

    Args:
        seconds: The most that one call may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._passed: dict[tuple[str, str, str], list[tuple[Shape, str]]] = {}

    def check(self, label: str, dtype: str, pass_: str, shape: Shape, seconds: float) -> str | None:
        """Says that a call of ``seconds`` is over the limit, and remembers it; None when it is within."""
        if seconds <= self._seconds:
            return None
        reason = f"{seconds:.3g} s a call, over the limit of {self._seconds:g} s"
        self._passed.setdefault((label, dtype, pass_), []).append((shape, reason))
        return reason

    def known(self, label: str, dtype: str, pass_: str, shape: Shape) -> str | None:
        """Says in which smaller case the limit was passed, or None. A training step contains the forward pass."""
        passes = ("forward",) if pass_ == "forward" else ("forward", "training")
        for name in passes:
            for smaller, reason in self._passed.get((label, dtype, name), ()):
                if smaller.T <= shape.T and smaller.N <= shape.N and smaller.C <= shape.C and smaller.H <= shape.H:
                    return f"{reason}, at {smaller.name}, {name}"
        return None


def memory_lack(shape: Shape, dtype: str, pass_: str, device: torch.device) -> str | None:
    """Says by how much a case's memory is too much for the device, or None when it fits."""
    need, available = memory_estimate(shape, dtype, pass_), available_memory(device)
    if need <= USABLE_MEMORY * available:
        return None
    return f"needs an estimated {need / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB free"


def estimate_seconds(
    implementation: Implementation, shape: Shape, dtype: str, pass_: str, device: torch.device
) -> float:
    """Seconds that a call takes, from a few time steps, of an implementation whose cost is linear in them."""
    steps = min(shape.T, max(FEWEST_PROBED_STEPS, round(shape.T * PROBED_SHARE)))
    problem = make_problem(dataclasses.replace(shape, T=steps), dtype, "spikes", device)
    layer, inputs = implementation.build(problem), problem.sets[0]

    def call() -> None:
        if pass_ == "training":
            torch.autograd.backward(layer(inputs.x), inputs.grad_spikes)
        else:
            with torch.no_grad():
                layer(inputs.x)

    clock = clock_for(device)
    return min(clock.time(call).wall for _ in range(PROBES)) * shape.T / steps


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
