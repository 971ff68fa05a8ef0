"""What the fused kernels buy on this machine, in under a minute: ``python -m leakypar.benchmark``.

Times a layer on the fused kernels beside one on `nn.RNN` and beside `nn.Linear` alone, the floor that a user pays
already: in one process, in turns, so that what disturbs one disturbs all; medians of the times, and of the rounds'
ratios. The two layers must agree before they are timed. ``--help`` lists the choices; ``--csv`` keeps the rows.

The repository's ``benchmarks/`` measures every rival, on a GPU too, with what is here: shapes, inputs, turns, medians.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .measuring import (
    DTYPES,
    THRESHOLD,
    Contestant,
    InputSet,
    Problem,
    Reading,
    Shape,
    Summary,
    clock_for,
    make_problem,
    race,
    rate_of,
    summarize,
)
from .module import LeakyParallel
from .version import __version__

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tutorial", 25, 128, 784, 128),
        Shape("wide-tutorial", 25, 128, 784, 1000),
        Shape("speech", 250, 256, 700, 512),
        Shape("long", 1000, 32, 128, 128),
        Shape("streaming", 16384, 1, 64, 512),
        Shape("audio", 4096, 8, 256, 1024),
        Shape("square", 128, 64, 2048, 2048),
        Shape("onm", 500, 10, 512, 512),
    )
}
ONE_SEQUENCE = Shape("one-sequence", 1000, 1, 128, 256)
"""So small that on a CPU the call itself is a part of its time."""

QUICK = ("tutorial", "long", "streaming", "onm")
PASSES = ("forward", "training")
FIRST_LAYER = "first-layer"
"""A training step as the first layer of a network has it, whose input needs no gradient."""

FLOOR, RNN, FUSED = "nn.Linear", "leakypar rnn", "leakypar fused"
FEWEST_ROUNDS, MOST_ROUNDS = 5, 1000
MOST_MISMATCH = 1e-2
"""Share of spikes in which two implementations may differ by rounding, in bfloat16; a wrong one differs in more."""


def figures(readings: Mapping[str, Mapping[int, Reading]], name: str, baseline: str, floor: str) -> dict[str, Any]:
    """What a row says of one contestant's readings, in the columns of a CSV; times are microseconds.

    A ratio is the median over the rounds that both took part in: neighbours in time, so of one disturbance.

    Raises:
        ValueError: As :func:`summarize`.
    """

    def ratio(over: str, under: str) -> Summary | None:
        over_times, under_times = readings.get(over, {}), readings.get(under, {})
        common = [over_times[index].device / under_times[index].device for index in over_times if index in under_times]
        return summarize(common) if common else None

    mine = readings[name].values()
    device, wall = summarize([each.device for each in mine]), summarize([each.wall for each in mine])
    over_rnn, over_linear = ratio(baseline, name), ratio(name, floor)
    return {
        "rounds": len(mine),
        "median_us": 1e6 * device.median,
        "spread_us": 1e6 * device.spread,
        "least_us": 1e6 * device.least,
        "wall_us": 1e6 * wall.median,
        "speedup_over_rnn": over_rnn and over_rnn.median,
        "time_over_linear": over_linear and over_linear.median,
        "time_over_linear_spread": over_linear and over_linear.spread,
    }


def step(layer: nn.Module, inputs: InputSet, pass_: str) -> Tensor:
    """A forward pass, or forward and backward to what requires a gradient; returns the layer's output."""
    if pass_ == "forward":
        with torch.no_grad():
            output: Tensor = layer(inputs.x)
        return output
    output = layer(inputs.x)
    torch.autograd.backward(output, inputs.grad_spikes)
    return output


def contestant(layer: nn.Module, sets: Sequence[InputSet], pass_: str) -> Contestant:
    """A layer that is stepped, and forgets its gradients before, so that none is added to."""

    def forget() -> None:
        layer.zero_grad(set_to_none=True)
        for inputs in sets:
            inputs.x.grad = None

    return Contestant(lambda index: step(layer, sets[index], pass_), forget)


def layers(problem: Problem) -> dict[str, nn.Module]:
    """The three that are timed, with the problem's parameters."""
    (weight, bias_ih, bias_hh, decay), (C, H) = problem.parameters, (problem.shape.C, problem.shape.H)
    to: dict[str, Any] = {"device": problem.device, "dtype": weight.dtype}
    made: dict[str, nn.Module] = {FLOOR: nn.Linear(C, H, **to)}
    made[FLOOR].load_state_dict({"weight": weight, "bias": bias_ih})
    for name in (RNN, FUSED):
        layer = LeakyParallel(C, H, beta=decay.float(), threshold=THRESHOLD, backend=backend_of(name), **to)
        state = {"rnn.weight_ih_l0": weight, "rnn.bias_ih_l0": bias_ih, "rnn.bias_hh_l0": bias_hh}
        layer.load_state_dict(layer.state_dict() | state)
        made[name] = layer
    return made


def backend_of(name: str) -> str:
    """That of a contestant that is ours."""
    return "fused" if name == FUSED else "rnn"


def measure(
    shape: Shape, dtype: str, pass_: str, kind: str, threads: int, seconds: float, device: torch.device
) -> list[dict[str, Any]]:
    """Times one case for about so long, and for five rounds at least.

    Returns:
        A row for each contestant, with the columns of :func:`figures` and those that say what was timed.

    Raises:
        ValueError: If the two backends' spikes differ in more than rounding explains, or one raised an error.
    """
    torch.set_num_threads(threads)
    problem = make_problem(shape, dtype, kind, device)
    timed = layers(problem)
    spikes = [step(timed[name], problem.sets[0], "forward") for name in (FUSED, RNN)]
    if (share := (spikes[0] != spikes[1]).double().mean().item()) > MOST_MISMATCH:
        raise ValueError(f"spikes: {share:.1%} differ between fused and rnn, expected at most {MOST_MISMATCH:.0%}")
    for inputs in problem.sets:
        inputs.x.requires_grad_(pass_ == "training")
    readings, errors = race(
        {name: contestant(layer, problem.sets, pass_) for name, layer in timed.items()},
        clock_for(device),
        len(problem.sets),
        seconds=seconds,
        fewest=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )
    if errors:
        raise ValueError("; ".join(f"{name}: {error}" for name, error in errors.items()))
    case = {"dtype": dtype, "pass": pass_, "input": kind, "threads": threads, "device_type": device.type}
    return [
        {
            "torch": torch.__version__,
            "leakypar": __version__,
            "shape": shape.name,
            **{size: getattr(shape, size) for size in "TNCH"},
            **case,
            "implementation": name,
            "backend": "" if name == FLOOR else backend_of(name),
            **figures(readings, name, RNN, FLOOR),
        }
        for name in timed
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows of one case as a line."""
    linear, rnn, fused = ({**row, "ms": row["median_us"] / 1e3} for row in rows)
    print(
        f"{fused['shape']:13} {fused['dtype']:9} {fused['input']:6} {fused['pass']:9} {fused['threads']:2} threads"
        f" {linear['ms']:12.2f} {rnn['ms']:14.2f} {fused['ms']:15.2f}"
        f" {fused['time_over_linear']:11.2f} ± {fused['time_over_linear_spread']:.2f}"
        f" {fused['speedup_over_rnn']:13.1f}",
        flush=True,
    )


def show_means(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what the fused rows say together, for each pass."""
    for pass_ in dict.fromkeys(row["pass"] for row in rows):
        fused = [row for row in rows if row["pass"] == pass_ and row["implementation"] == FUSED]
        over_linear, over_rnn = ([row[name] for row in fused] for name in ("time_over_linear", "speedup_over_rnn"))
        print(
            f"{pass_}: fused over nn.Linear {statistics.geometric_mean(over_linear):.2f} (geometric mean), "
            f"{max(over_linear):.2f} at most; rnn over fused {min(over_rnn):.1f} to {max(over_rnn):.1f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    known_shapes = {**SHAPES, ONE_SEQUENCE.name: ONE_SEQUENCE}
    parser = argparse.ArgumentParser(prog="python -m leakypar.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", default=",".join(QUICK), help=f"of {', '.join(known_shapes)}; or all")
    parser.add_argument("--dtypes", default="float32", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--passes", default=",".join(PASSES), help=f"or {FIRST_LAYER}")
    parser.add_argument("--inputs", default="spikes", help="of spikes (a rate of 20%%), dense, or rates such as 5%%")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="such as 1,2")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case, about")
    parser.add_argument("--csv", type=Path, help="a file to write the rows to")
    options = parser.parse_args(arguments)
    shapes = list(known_shapes) if options.shapes == "all" else options.shapes.split(",")
    dtypes, passes, inputs = options.dtypes.split(","), options.passes.split(","), options.inputs.split(",")
    for name, chosen, known in (
        ("--shapes", shapes, known_shapes),
        ("--dtypes", dtypes, DTYPES),
        ("--passes", passes, (*PASSES, FIRST_LAYER)),
    ):
        for value in chosen:
            if value not in known:
                parser.error(f"{name}: expected some of {', '.join(known)}, got {value!r}")
    for kind in inputs:
        try:
            rate_of(kind)
        except ValueError as error:
            parser.error(f"--inputs: {error}")
    if not ops.is_available(options.device):
        print(f"There are no fused kernels to measure: {ops.unavailable_reason(options.device)}", file=sys.stderr)
        return 1
    print(f'{"":44} milliseconds: nn.Linear, backend="rnn", backend="fused"; fused/nn.Linear, rnn/fused')
    rows = []
    for shape, dtype, pass_, kind, threads in product(shapes, dtypes, passes, inputs, options.threads.split(",")):
        case = measure(
            known_shapes[shape], dtype, pass_, kind, int(threads), options.seconds, torch.device(options.device)
        )
        show(case)
        rows += case
    show_means(rows)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
