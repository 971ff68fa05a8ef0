"""``python -m benchmarks.tuning``: the model's plan beside the measured best, over shapes; what re-fits the model.

Every plan that is measured is remembered where ``LEAKYPAR_TUNING`` says. The CSV file has a row for each candidate, the
best of each direction first; ``python -m benchmarks.table`` makes the table of docs/tuning.md of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.environment import RESULTS, describe
from benchmarks.results import COLUMNS, Writer, microseconds, row
from benchmarks.shapes import SHAPES, parse_shapes
from leakypar import ops, tune
from leakypar.launch_plan import rnn_tf32
from leakypar.measuring import DTYPES, Shape
from leakypar.tuning_file import Candidate

RANGES = ((3, 14), (0, 8), (4, 11), (4, 11))  # of T, N, C and H, as powers of 2


def random_shapes(count: int) -> list[Shape]:
    """Shapes whose sizes are drawn evenly by their logarithms, of at most 2^25 values of input or spikes."""
    generator = torch.Generator().manual_seed(0)
    found: list[Shape] = []
    while len(found) < count:
        draws = torch.rand(4, generator=generator).tolist()
        T, N, C, H = (round(2 ** (low + draw * (high - low))) for draw, (low, high) in zip(draws, RANGES, strict=True))
        if T * N * max(C, H) <= 1 << 25:
            found.append(Shape(f"random-{len(found) + 1}", T, N, C, H))
    return found


def named(candidate: Candidate) -> str:
    """A candidate in a word or two."""
    tiles = "" if candidate.tiles is None else " " + "/".join(str(int(value)) for value in candidate.tiles)
    return f"{candidate.method} {candidate.chunk}{tiles}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Tunes every shape; writes each candidate, and prints the model's choice beside the best."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__.partition(": ")[2])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="names, sizes such as 25x128x784x10; none for none")
    parser.add_argument("--random", type=int, default=20, help="so many shapes drawn at random, besides")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--time-limit", type=float, default=120, help="seconds for all, about")
    parser.add_argument("--output", type=Path, metavar="CSV", help="default: <device>-tuning.csv of benchmarks/results")
    options = parser.parse_args(arguments)
    if not ops.is_available(torch.device(options.device).type):
        print(ops.unavailable_reason(torch.device(options.device).type), file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    shapes = [] if options.shapes == "none" else parse_shapes(options.shapes)
    cases = list(product(shapes + random_shapes(options.random), options.dtypes.split(",")))
    environment = describe(torch.device(options.device))
    narrowing = ("shapes", "random", "dtypes")
    partial = "-partial" * any(getattr(options, name) != parser.get_default(name) for name in narrowing)
    output = options.output or RESULTS / f"{options.device}-tuning{partial}.csv"
    writer = Writer(output, [*COLUMNS, "gain", "is_model"])
    for shape, dtype in cases:
        sizes, seconds = (shape.T, shape.N, shape.C, shape.H), options.time_limit / (2 * len(cases))
        tuned = tune(*sizes, dtype=DTYPES[dtype], device=options.device, seconds=seconds)
        for direction in ("forward", "backward"):
            candidates = [each for each in tuned.candidates if each.direction == direction]
            made = {"pass_": direction, "dtype": dtype, "threads": options.threads}
            made |= {"implementation": "leakypar fused", "backend": "fused"}
            if options.device != "cpu" and dtype == "float32":
                made["tf32"] = "on" if rnn_tf32() else "off"
            for each in candidates:
                what = row(environment, shape, **made, plan=named(each), median_us=each.microseconds)
                writer.write([what | {"gain": each.gain, "is_model": each.is_model}])
            model, best = next(each for each in candidates if each.is_model), candidates[0]
            took = f"{named(model)}, {microseconds(model.microseconds)}; best {named(best)}, gain {best.gain:.2f}"
            print(f"{shape} {dtype} {direction}: {took}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
