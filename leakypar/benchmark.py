"""What the fused kernels buy on this machine's CPU, in under a minute: ``python -m leakypar.benchmark``.

Times a layer on the fused kernels beside one on `nn.RNN` and beside `nn.Linear` alone, the floor that a user pays
already: in one process, in turns, so that what disturbs one disturbs all; medians of the rounds. ``--help`` lists the
choices; ``--csv`` keeps the rows.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import ops
from .module import LeakyParallel
from .version import __version__

SHAPES = {
    "tutorial": (25, 128, 784, 128),
    "tutorial-100": (100, 128, 784, 128),
    "wide-tutorial": (25, 128, 784, 1000),
    "long": (1000, 32, 128, 128),
    "onm": (500, 10, 512, 512),
    "speech-8": (2000, 8, 700, 256),
    "one-sequence": (1000, 1, 128, 256),
    "streaming": (16384, 1, 64, 512),
    "speech": (250, 256, 700, 512),
    "audio": (4096, 8, 256, 1024),
    "square": (128, 64, 2048, 2048),
}
"""`(T, N, C, H)`: time steps, batch, input features, neurons."""

QUICK = ("tutorial", "long", "onm", "one-sequence")
PASSES = ("forward", "training")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float64)}


class Case(NamedTuple):
    """What is timed: a shape's name, an element type, forward or training, and a number of threads."""

    shape: str
    dtype: str
    direction: str
    threads: int


class Row(NamedTuple):
    """One line of the CSV. Times are medians in milliseconds, of `rounds` rounds; memory is in MiB, or None.

    Attributes:
        case: what was timed.
        sizes: `T x N x C x H`.
        linear: `nn.Linear`.
        rnn: the layer on `nn.RNN`.
        fused: the layer on the fused kernels.
        fused_over_linear: the median of the rounds' ratios.
        rnn_over_fused: likewise.
        spread: half the distance between the quartiles of `fused_over_linear`.
        rounds: how many.
    """

    case: Case
    sizes: str
    linear: float
    rnn: float
    fused: float
    fused_over_linear: float
    rnn_over_fused: float
    spread: float
    rounds: int

    def record(self) -> dict[str, object]:
        """The row as a line of the CSV."""
        values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in self._asdict().items()}
        del values["case"]
        return {**self.case._asdict(), **values, "torch": torch.__version__, "leakypar": __version__}


def layers(shape: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The three that are timed, with the same weights where they have the same parameters."""
    _, _, C, H = SHAPES[shape]
    fused = LeakyParallel(C, H, beta=0.9, backend="fused", dtype=dtype)
    rnn = LeakyParallel(C, H, beta=0.9, backend="rnn", dtype=dtype)
    rnn.load_state_dict(fused.state_dict())
    return {"linear": nn.Linear(C, H, dtype=dtype), "rnn": rnn, "fused": fused}


def inputs(shape: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Random inputs and gradients, two of each, so that none is found in the cache by accident."""
    T, N, C, H = SHAPES[shape]
    return [(torch.randn(T, N, C, dtype=dtype), torch.randn(T, N, H, dtype=dtype)) for _ in range(2)]


def call(layer: nn.Module, x: Tensor, gradient: Tensor, direction: str) -> None:
    """A forward pass, or forward and backward to the input and every parameter."""
    if direction == "forward":
        with torch.no_grad():
            layer(x)
        return
    for parameter in layer.parameters():
        parameter.grad = None
    layer(x.detach().requires_grad_()).backward(gradient)


def timed(layer: nn.Module, x: Tensor, gradient: Tensor, direction: str) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call(layer, x, gradient, direction)
    return time.perf_counter() - began


def measure(case: Case, seconds: float) -> Row:
    """Times one case for about so long, and for five rounds at least."""
    torch.manual_seed(0)
    torch.set_num_threads(case.threads)
    dtype = DTYPES[case.dtype]
    rivals = layers(case.shape, dtype)
    drawn = inputs(case.shape, dtype)
    for layer in rivals.values():
        call(layer, *drawn[0], case.direction)

    times: dict[str, list[float]] = {name: [] for name in rivals}
    orders = list(permutations(rivals))  # each comes after each other as often, with what that left in the caches
    began = time.perf_counter()
    while len(times["fused"]) < 5 or time.perf_counter() - began < seconds:
        turn = len(times["fused"])
        for name in orders[turn % len(orders)]:
            times[name].append(timed(rivals[name], *drawn[turn % 2], case.direction))

    ratios = [fused / linear for fused, linear in zip(times["fused"], times["linear"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return Row(
        case,
        " x ".join(map(str, SHAPES[case.shape])),
        **{name: 1e3 * statistics.median(times[name]) for name in rivals},
        fused_over_linear=statistics.median(ratios),
        rnn_over_fused=statistics.median(r / f for r, f in zip(times["rnn"], times["fused"], strict=True)),
        spread=(quartiles[2] - quartiles[0]) / 2,
        rounds=len(ratios),
    )


def show(rows: Iterator[Row]) -> list[Row]:
    """Prints rows as they come; returns them all, after a line with what they say together."""
    print(f"{'':42}  milliseconds: nn.Linear   nn.RNN    fused    fused/nn.Linear  nn.RNN/fused")
    seen = []
    for row in rows:
        shape, dtype, direction, threads = row.case
        print(
            f"{shape:13} {dtype:9} {direction:9} {threads:2} threads {row.linear:20.2f} {row.rnn:8.2f} {row.fused:8.2f}"
            f" {row.fused_over_linear:11.2f} ± {row.spread:.2f} {row.rnn_over_fused:13.1f}",
            flush=True,
        )
        seen.append(row)
    for direction in dict.fromkeys(row.case.direction for row in seen):
        group = [row for row in seen if row.case.direction == direction]
        over_linear, over_fused = [r.fused_over_linear for r in group], [r.rnn_over_fused for r in group]
        print(
            f"{direction}: fused over nn.Linear {statistics.geometric_mean(over_linear):.2f} (geometric mean), "
            f"{max(over_linear):.2f} at most; nn.RNN over fused {min(over_fused):.1f} to {max(over_fused):.1f}"
        )
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m leakypar.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(QUICK), help=f"of {', '.join(SHAPES)}; or all")
    parser.add_argument("--dtypes", default="float32", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--passes", default=",".join(PASSES))
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="such as 1,2")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each row, about")
    parser.add_argument("--csv", type=Path, help="a file to write the rows to")
    options = parser.parse_args(arguments)
    shapes = list(SHAPES) if options.shapes == "all" else options.shapes.split(",")
    for name, chosen, known in (
        ("--shapes", shapes, SHAPES),
        ("--dtypes", options.dtypes.split(","), DTYPES),
        ("--passes", options.passes.split(","), PASSES),
    ):
        for value in chosen:
            if value not in known:
                parser.error(f"{name}: expected some of {', '.join(known)}, got {value!r}")
    if not ops.is_available("cpu"):
        print(f"There are no fused kernels to measure: {ops.unavailable_reason('cpu')}", file=sys.stderr)
        return 1
    threads = [int(count) for count in options.threads.split(",")]
    cases = product(shapes, options.dtypes.split(","), options.passes.split(","), threads)
    rows = show(measure(Case(*case), options.seconds) for case in cases)
    if options.csv:
        records = [row.record() for row in rows]
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0].keys())
            writer.writeheader()
            writer.writerows(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
