"""``python -m benchmarks.host_time``: what Python and the dispatcher add to layers so small that they compute nothing.

One thread, backend="fused"; blocks of calls in turns; the median time of a call, and of its ratio to ``nn.Linear``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

import leakypar
from leakypar.benchmark import contestant, figures
from leakypar.measuring import Contestant, InputSet, Reading, turns

TURNS, CALLS = 60, 50


class RNN(nn.RNN):
    """Its outputs alone."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = super().forward(x)[0]
        return y


def rows() -> dict[str, dict[str, Callable[[], object]]]:
    """Calls by row and contestant, ``nn.Linear`` first: the function, the module, a training step; ten layers."""
    found: dict[str, dict[str, Callable[[], object]]] = {}
    plain = partial(RNN, nonlinearity="relu")
    ours = partial(leakypar.LeakyParallel, beta=0.5, backend="fused")
    for T, N, size, depth in ((1, 1, 16, 1), (2, 1, 16, 1), (25, 8, 64, 10)):
        makers: dict[str, Callable[..., nn.Module]] = {"nn.Linear": nn.Linear, "nn.RNN": plain, "leakypar": ours}
        stacks = {name: nn.Sequential(*(make(size, size) for _ in range(depth))) for name, make in makers.items()}
        inputs = InputSet(torch.rand(T, N, size), torch.ones(T, N, size))
        name = f"({T}, {N}, {size})" if depth == 1 else f"{depth} layers of ({T}, {N}, {size})"
        if depth == 1:
            weight, bias, decay = torch.rand(size, size), torch.rand(size), torch.full((size,), 0.5)
            linear = partial(F.linear, inputs.x, weight, bias)
            fused = partial(leakypar.leaky_parallel, inputs.x, weight, decay, bias, bias)
            found[f"functional, {name}"] = {"nn.Linear": linear, "leakypar": fused}
        for pass_ in ("forward", "training"):
            runners = {each: contestant(stack, [inputs], pass_) for each, stack in stacks.items()}
            found[f"{pass_}, {name}"] = {each: partial(_fresh, runner) for each, runner in runners.items()}
    return found


def _fresh(runner: Contestant) -> None:
    runner.prepare()
    runner.call(0)


def measure(calls: Mapping[str, Callable[[], object]], rounds: int = TURNS) -> dict[str, dict[str, float]]:
    """The columns of :func:`~leakypar.benchmark.figures` for each contestant."""
    timers = {name: Timer("call()", globals={"call": call}, num_threads=1) for name, call in calls.items()}
    readings: dict[str, dict[int, Reading]] = {name: {} for name in calls}
    for index, name in turns(dict.fromkeys(calls, rounds)):
        seconds = timers[name].timeit(CALLS).mean
        readings[name][index] = Reading(seconds, seconds)
    return {name: figures(readings, name, "", "nn.Linear") for name in calls}


def main() -> None:
    """Prints the table, as Markdown."""
    print(f"torch {torch.__version__}, leakypar {leakypar.__version__}, {leakypar.build_info().variant}\n")
    print("| (T, N, C = H) | nn.Linear, µs | nn.RNN | leakypar, fused |\n|---|--:|--:|--:|")
    for row, calls in rows().items():
        found = measure(calls)
        cells = [f"{found['nn.Linear']['median_us']:.1f} ± {found['nn.Linear']['spread_us']:.1f}"]
        for name in ("nn.RNN", "leakypar"):
            each = found.get(name)
            cells.append(f"{each['time_over_linear']:.2f}× ± {each['time_over_linear_spread']:.2f}" if each else "")
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
