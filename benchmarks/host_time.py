"""``python -m benchmarks.host_time``: what Python and the dispatcher add to layers so small that they compute nothing.

One thread, backend="fused"; blocks of calls in turns; the median time of a call, and of its ratio to ``nn.Linear``.
``python -m benchmarks.table`` makes the table of docs/layer.md of its ``results/cpu-host.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

import leakypar
from benchmarks.environment import RESULTS, describe
from benchmarks.results import COLUMNS, Writer, microseconds, row
from leakypar.benchmark import contestant, figures
from leakypar.measuring import Contestant, InputSet, Reading, Shape, turns

TURNS, CALLS = 60, 50


class RNN(nn.RNN):
    """Its outputs alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = super().forward(x)[0]
        return y


Calls = Mapping[str, Callable[[], object]]


def cases() -> dict[tuple[str, Shape], Calls]:
    """Calls by what is called, its shape, and contestant, ``nn.Linear`` first."""
    found: dict[tuple[str, Shape], Calls] = {}
    plain = partial(RNN, nonlinearity="relu")
    ours = partial(leakypar.LeakyParallel, beta=0.5, backend="fused")
    for T, N, size, depth in ((1, 1, 16, 1), (2, 1, 16, 1), (25, 8, 64, 10)):
        makers: dict[str, Callable[..., nn.Module]] = {"nn.Linear": nn.Linear, "nn.RNN": plain, "leakypar": ours}
        stacks = {name: nn.Sequential(*(make(size, size) for _ in range(depth))) for name, make in makers.items()}
        inputs = InputSet(torch.rand(T, N, size), torch.ones(T, N, size))
        shape = Shape("one layer" if depth == 1 else f"{depth} layers", T, N, size, size)
        if depth == 1:
            weight, bias, decay = torch.rand(size, size), torch.rand(size), torch.full((size,), 0.5)
            linear = partial(F.linear, inputs.x, weight, bias)
            fused = partial(leakypar.leaky_parallel, inputs.x, weight, decay, bias, bias)
            found["functional", shape] = {"nn.Linear": linear, "leakypar": fused}
        for pass_ in ("forward", "training"):
            runners = {each: contestant(stack, [inputs], pass_) for each, stack in stacks.items()}
            found[pass_, shape] = {each: partial(_fresh, runner) for each, runner in runners.items()}
    return found


def _fresh(runner: Contestant) -> None:
    runner.prepare()
    runner.call(0)


def measure(calls: Calls, rounds: int = TURNS) -> dict[str, dict[str, float]]:
    """The columns of :func:`~leakypar.benchmark.figures` for each contestant."""
    timers = {name: Timer("call()", globals={"call": call}, num_threads=1) for name, call in calls.items()}
    readings: dict[str, dict[int, Reading]] = {name: {} for name in calls}
    for index, name in turns(dict.fromkeys(calls, rounds)):
        seconds = timers[name].timeit(CALLS).mean
        readings[name][index] = Reading(seconds, seconds)
    return {name: figures(readings, name, "", "nn.Linear") for name in calls}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes a row for each case and contestant, and prints it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__.partition(": ")[2])
    parser.add_argument("--rounds", type=int, default=TURNS)
    parser.add_argument("--output", type=Path, metavar="CSV", default=RESULTS / "cpu-host.csv")
    options = parser.parse_args(arguments)
    environment, writer = describe(torch.device("cpu")), Writer(options.output)
    for (pass_, shape), calls in cases().items():
        for name, found in measure(calls, options.rounds).items():
            made = {"implementation": name, "backend": "fused" if name == "leakypar" else "", "rounds": options.rounds}
            measured = {column: value for column, value in found.items() if column in COLUMNS}
            writer.write([row(environment, shape, pass_=pass_, dtype="float32", threads=1, **made) | measured])
            ratio = f"{found['time_over_linear']:.2f} ± {found['time_over_linear_spread']:.2f} of nn.Linear"
            print(f"{pass_:10} {shape!s:24} {name:10} {microseconds(found['median_us']):>9}  {ratio}", flush=True)


if __name__ == "__main__":
    main()
