"""``make bench-cpu``: the fused kernels on the CPU against the aims of docs/cpu.md, whose tables it rewrites.

Times come from `leakypar.benchmark`, in one process and in turns; memory is what PyTorch's allocator saw at most during
one training step.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.environment import describe
from benchmarks.memory import peak_bytes
from leakypar import LeakyParallel
from leakypar.benchmark import SHAPES, Case, Row, call, inputs, layers, measure, show

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu-layer"
PAGE = ROOT / "docs" / "cpu.md"
OTHER_DTYPES = ("tutorial", "long", "onm", "one-sequence", "streaming")
"""The shapes that are timed in float64 and bfloat16 too."""


def cases(threads: Sequence[int]) -> Iterator[Case]:
    """Every shape in float32, some in the other types; forward and training; each number of threads."""
    for direction, count in product(("forward", "training"), threads):
        yield from (Case(shape, "float32", direction, count) for shape in SHAPES)
        yield from (Case(shape, dtype, direction, count) for dtype in ("float64", "bfloat16") for shape in OTHER_DTYPES)


def peaks(shape: str) -> dict[str, str]:
    """MiB that a training step in float32 holds at most beside inputs and parameters, by implementation."""
    _, _, C, H = SHAPES[shape]
    rivals = layers(shape, torch.float32)
    rivals["recompute"] = LeakyParallel(C, H, beta=0.9, backend="fused", recompute=True)
    ((x, gradient), _) = inputs(shape, torch.float32)
    found = {"shape": shape}
    for name, layer in rivals.items():
        call(layer, x, gradient, "training")
        for parameter in layer.parameters():
            parameter.grad = None
        gc.collect()
        step = partial(call, layer, x, gradient, "training")
        found[name] = f"{peak_bytes(step, x.device) / 2**20:.1f}"
    return found


def write(path: Path, records: Sequence[dict[str, object]]) -> None:
    """A CSV of records that have the same keys."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0].keys())
        writer.writeheader()
        writer.writerows(records)


def read(path: Path) -> list[dict[str, str]]:
    """The records of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def times_table(records: Sequence[dict[str, str]], dtype: str) -> list[str]:
    """A line for every shape, a pair of columns for each direction and number of threads."""
    chosen = [record for record in records if record["dtype"] == dtype]
    columns = list(dict.fromkeys((record["direction"], record["threads"]) for record in chosen))
    heads = [f"{direction}, {count} thread{'s' * (count != '1')}" for direction, count in columns]
    lines = [f"| shape | T × N × C × H | {' | '.join(heads)} |", "|---|---|" + "---|" * len(columns)]
    for shape in dict.fromkeys(record["shape"] for record in chosen):
        found = {(r["direction"], r["threads"]): r for r in chosen if r["shape"] == shape}
        cells = [
            f"{float(r['fused_over_linear']):.2f} ± {float(r['spread']):.2f}, {float(r['rnn_over_fused']):.1f}×"
            for r in (found[column] for column in columns)
        ]
        lines.append(f"| {shape} | {next(iter(found.values()))['sizes'].replace('x', '×')} | {' | '.join(cells)} |")
    over_linear = [
        [float(r["fused_over_linear"]) for r in chosen if (r["direction"], r["threads"]) == column]
        for column in columns
    ]
    means = [f"{statistics.geometric_mean(ratios):.2f}, at most {max(ratios):.2f}" for ratios in over_linear]
    return [*lines, f"| **geometric mean** | | {' | '.join(means)} |"]


def bfloat16_table(records: Sequence[dict[str, str]]) -> list[str]:
    """The fused layer in bfloat16 over itself in float32, and over nn.Linear in bfloat16."""
    fused = {(r["shape"], r["dtype"], r["direction"], r["threads"]): float(r["fused"]) for r in records}
    lines = ["| shape | direction | threads | over float32 | over nn.Linear in bfloat16 |", "|---|---|---|---|---|"]
    for r in records:
        if r["dtype"] == "bfloat16":
            ratio = float(r["fused"]) / fused[r["shape"], "float32", r["direction"], r["threads"]]
            cells = (r["shape"], r["direction"], r["threads"], f"{ratio:.2f}", f"{float(r['fused_over_linear']):.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_table(records: Sequence[dict[str, str]]) -> list[str]:
    """MiB by implementation, and the two ratios that have an aim."""
    lines = [
        "| shape | nn.Linear | nn.RNN | fused | fused, recompute | fused / nn.RNN | recompute / nn.Linear |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        ratios = float(r["fused"]) / float(r["rnn"]), float(r["recompute"]) / float(r["linear"])
        cells = [r["shape"], r["linear"], r["rnn"], r["fused"], r["recompute"], *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rewrite(text: str, blocks: dict[str, list[str]]) -> str:
    """The page with each block's lines between its markers."""
    for name, lines in blocks.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"page: expected one pair of markers {begin.strip()} and {end}")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = "\n".join([before + begin, *lines, "", end + after])
    return text


def page(times: Sequence[dict[str, str]], memory: Sequence[dict[str, str]], text: str) -> str:
    """The page's text with its tables rewritten from the records."""
    machine = f"{times[0]['device']}, torch {times[0]['torch']}, commit {times[0]['commit']}."
    return rewrite(
        text,
        {
            "float32": [machine, "", *times_table(times, "float32")],
            "float64": times_table(times, "float64"),
            "bfloat16": bfloat16_table(times),
            "memory": memory_table(memory),
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes both CSVs and rewrites the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row, about")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSVs")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite")
    options = parser.parse_args(arguments)
    threads = [int(count) for count in options.threads.split(",")]
    rows: list[Row] = show(measure(case, options.seconds) for case in cases(threads))
    facts = describe(torch.device("cpu"))
    where = {name: getattr(facts, name) for name in ("device", "commit")}
    options.results.mkdir(parents=True, exist_ok=True)
    write(options.results / "times.csv", [{**row.record(), **where} for row in rows])
    write(options.results / "memory.csv", [{**peaks(shape), **where} for shape in SHAPES])
    times, memory = read(options.results / "times.csv"), read(options.results / "memory.csv")
    options.page.write_text(page(times, memory, options.page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
