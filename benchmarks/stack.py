"""``python -m benchmarks --memory``: what a training step of a stack holds at most, over the number of time steps.

Four layers on spikes at a rate of 5%, with weights that make each fire at it. The loss is the sum of the last layer's
spikes; every weight has its gradient, the input none. ``T`` doubles, in a fresh process each time, until :data:`LIMIT`
bytes are passed, or a step takes longer than the limit of a call. The time is the median of some steps after the one
whose memory was measured, or that one's where it takes long.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import leakypar
from benchmarks import memory
from benchmarks.environment import Environment
from benchmarks.implementations import Implementation
from benchmarks.results import FAILED, OUT_OF_TIME, SKIPPED, Row, row
from benchmarks.runner import REFUSALS, Settings
from leakypar.measuring import THRESHOLD, Parameters, Problem, Shape, draw_input, rate_of, summarize

MEASURED = (
    *("snntorch LeakyParallel", "nn.RNN", "spikingjelly (LIF checkpoint)"),
    *("leakypar fused (dense)", "leakypar fused (dense recompute)", "leakypar fused (recompute)"),
)
DEPTH, SHAPE, RATE = 4, Shape("stack", 64, 16, 512, 512), "5%"
LIMIT = 4 << 30
WARM_UP = 256  # steps
CPU = torch.device("cpu")


class Measured(NamedTuple):
    """Of one stack and ``T``: bytes, seconds of each step, how often each layer fires."""

    peak: int
    seconds: list[float]
    rates: list[float]


def parameters() -> list[Parameters]:
    """Those of every layer."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"threshold": THRESHOLD, "backend": "fused"}
    decays = [0.5 + 0.45 * torch.rand(SHAPE.H) for _ in range(DEPTH)]
    layers = [leakypar.LeakyParallel(SHAPE.C, SHAPE.H, decay, **options) for decay in decays]
    x = draw_input(replace(SHAPE, T=WARM_UP), RATE, torch.float32, torch.Generator().manual_seed(1))
    leakypar.init.firing_rate_(nn.Sequential(*layers), x, rate_of(RATE) or 1.0)
    found = []
    for layer, decay in zip(layers, decays, strict=True):
        weight, _, bias_ih, bias_hh = (each.detach() for each in layer.rnn())
        found.append(Parameters(weight, bias_ih, bias_hh, decay))
    return found


def measure(
    found: Implementation, shape: Shape, layers: list[Parameters], threads: int, rounds: int, limit: float
) -> Measured:
    """Measures in this process, which should be a fresh one; times ``rounds`` steps, or fewer in ``limit`` seconds."""
    torch.set_num_threads(threads)
    x = draw_input(shape, RATE, torch.float32, torch.Generator().manual_seed(0))
    network = nn.Sequential(*(found.build(Problem(shape, "float32", CPU, each, (), False)) for each in layers))
    rates, seconds = [], []

    def count(layer: nn.Module, arguments: object, spikes: Tensor) -> None:
        rates.append(spikes.count_nonzero().item() / spikes.numel())

    def forget() -> None:
        network.zero_grad(set_to_none=True)

    def step() -> None:
        start = time.perf_counter()
        network(x).sum().backward()
        seconds.append(time.perf_counter() - start)

    hooks = [layer.register_forward_hook(count) for layer in network]
    network(x[:WARM_UP]).sum().backward()  # loads libraries, makes threads
    for hook in hooks:
        hook.remove()
    forget()
    peak = memory.peak_of_this_process(step)
    while len(seconds) <= rounds and sum(seconds) < limit:
        forget()
        step()
    return Measured(peak, seconds[1:] or seconds, rates)


def run(settings: Settings, environment: Environment) -> Iterator[list[Row]]:
    """Yields a row for every stack and ``T``, those of one ``T`` after those of the one before."""
    (threads, *_), layers, T = settings.threads, parameters(), SHAPE.T
    began, going = time.monotonic(), dict.fromkeys(settings.implementations, Measured(0, [0.0], []))
    while going:
        for found, before in list(going.items()):
            shape, status = replace(SHAPE, T=T), SKIPPED
            case = {"dtype": "float32", "pass_": "training", "input": RATE, "spike_rate": rate_of(RATE)}
            each = row(environment, shape, **found.columns, **case, threads=threads)
            lack = found.unavailable(CPU)
            if time.monotonic() - began + 2 * max(before.seconds) > settings.time_limit:
                lack = OUT_OF_TIME
            elif 2 * before.peak + 4 * shape.rows * shape.C > memory.USABLE * memory.available(CPU):
                lack = "the machine's memory does not hold it"
            try:
                if not lack:
                    arguments = shape, layers, threads, settings.rounds, settings.case_seconds
                    measured = going[found] = memory.in_a_fresh_process(measure, found, *arguments)
            except REFUSALS as error:
                status, lack = FAILED, f"{type(error).__name__}: {error}"
            if lack:
                del going[found]
                yield [each | {"status": status, "note": lack}]
                continue
            too_slow = min(measured.seconds) > settings.call_limit
            if measured.peak > LIMIT or too_slow:
                del going[found]
            time_ = summarize(measured.seconds)
            each |= {"peak_bytes": measured.peak, "peak_source": memory.SOURCES["cpu"], "rounds": len(measured.seconds)}
            each |= {"median_us": 1e6 * time_.median, "spread_us": 1e6 * time_.spread, "least_us": 1e6 * time_.least}
            each["note"] = f"layers fire at {', '.join(f'{rate:.1%}' for rate in measured.rates)}"
            each["note"] += f"; ended: a step takes more than {settings.call_limit:g} s" * too_slow
            yield [each]
        T *= 2
