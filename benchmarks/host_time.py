"""Host time of a call: what Python and the dispatcher add to a layer so small that its arithmetic takes no time.

    python -m benchmarks.host_time

One thread. The contestants of a row take turns, in blocks of calls, so that whatever else the machine does falls on all
of them; a row shows the median time of a call, and the median over the turns of its ratio to `nn.Linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import leakypar

TURNS, CALLS = 60, 50
Step = Callable[[], object]


def turn(step: Step, calls: int) -> float:
    """Seconds of one call, over a block of calls."""
    start = perf_counter()
    for _ in range(calls):
        step()
    return (perf_counter() - start) / calls


def measure(steps: dict[str, Step], turns: int = TURNS, calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """Median microseconds of a call, and the median ratio to the first contestant, of each."""
    for step in steps.values():
        turn(step, calls)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            taken[name].append(turn(step, calls))
    floor = next(iter(taken.values()))
    return {
        name: (1e6 * median(times), median(time / least for time, least in zip(times, floor, strict=True)))
        for name, times in taken.items()
    }


def training(layer: nn.Module, x: Tensor) -> Step:
    """Forward, and the backward of a given gradient of the first output."""
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    output = layer(x)
    weight = torch.ones_like(output[0] if isinstance(output, tuple) else output)

    def step() -> object:
        output = layer(x)
        return torch.autograd.grad(output[0] if isinstance(output, tuple) else output, parameters, weight)

    return step


def evaluation(layer: nn.Module, x: Tensor) -> Step:
    """The forward without gradients."""

    def step() -> object:
        with torch.no_grad():
            return layer(x)

    return step


def problems() -> dict[str, dict[str, Step]]:
    """Steps by row and contestant; `nn.Linear` is the first of each row."""
    rows: dict[str, dict[str, Step]] = {}
    for T in (1, 2):
        x = torch.rand(T, 1, 16)
        layers = {
            "nn.Linear": nn.Linear(16, 16),
            "nn.RNN": nn.RNN(16, 16, nonlinearity="relu"),
            "leakypar": leakypar.LeakyParallel(16, 16, beta=0.5, backend="fused"),
        }
        layer = layers["leakypar"]
        assert isinstance(layer, leakypar.LeakyParallel)
        weight, bias, decay = layer.rnn.weight_ih_l0, layer.rnn.bias_ih_l0, torch.full((16,), 0.5)
        operators: dict[str, nn.Module] = {
            "nn.Linear": Applied(F.linear, weight, bias),
            "leakypar": Applied(leakypar.leaky_parallel, weight, decay, bias, layer.rnn.bias_hh_l0),
        }
        rows[f"functional, T = {T}"] = {name: evaluation(each, x) for name, each in operators.items()}
        rows[f"module, T = {T}"] = {name: evaluation(each, x) for name, each in layers.items()}
        rows[f"training step, T = {T}"] = {name: training(each, x) for name, each in layers.items()}
    x = torch.rand(25, 8, 64)
    ten: dict[str, nn.Module] = {
        "nn.Linear": nn.Sequential(*(nn.Linear(64, 64) for _ in range(10))),
        "leakypar": nn.Sequential(*(leakypar.LeakyParallel(64, 64, beta=0.5, backend="fused") for _ in range(10))),
    }
    rows["ten layers of (25, 8, 64)"] = {name: evaluation(each, x) for name, each in ten.items()}
    rows["ten layers of (25, 8, 64), training step"] = {name: training(each, x) for name, each in ten.items()}
    return rows


class Applied(nn.Module):
    """A function and its parameters, called as it is: this module's own call is taken off."""

    def __init__(self, function: Callable[..., Any], *parameters: Tensor | None) -> None:
        super().__init__()
        self.function, self.given = function, parameters

    def __call__(self, x: Tensor) -> Any:
        """Without hooks."""
        return self.function(x, *self.given)


def main() -> None:
    """Prints the table, as Markdown."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, leakypar {leakypar.__version__}, {leakypar.build_info().variant}\n")
    print("| | nn.Linear, µs | nn.RNN, µs | leakypar, µs | nn.RNN / nn.Linear | leakypar / nn.Linear |")
    print("|---|---|---|---|---|---|")
    for row, steps in problems().items():
        found = measure(steps)
        times = [f"{found[name][0]:.1f}" if name in found else "" for name in ("nn.Linear", "nn.RNN", "leakypar")]
        ratios = [f"{found[name][1]:.2f}" if name in found else "" for name in ("nn.RNN", "leakypar")]
        print("| " + " | ".join([row, *times, *ratios]) + " |")


if __name__ == "__main__":
    main()
