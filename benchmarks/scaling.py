"""``python -m benchmarks.scaling``: rewrites the tables of docs/scaling.md, from link speeds and from a GPU's CSV.

What moves over a link follows from a shape alone, and how long it takes from the speeds below, which are those that the
links' makers state. How long a step takes on one device is measured or not said: ``python -m benchmarks`` on a GPU
leaves the CSV that the last table is made of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu import rewrite
from benchmarks.environment import ROOT
from benchmarks.results import OK, Row, read_rows
from benchmarks.shapes import SHAPES, Shape
from benchmarks.show import microseconds
from benchmarks.table import INPUT, NOT_MEASURED, OURS, committed

PAGE = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"
DEVICES = 8
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Link:
    """What joins neighbours in a ring: bytes per second in each direction, as stated, and seconds a hop, assumed."""

    name: str
    bandwidth: float
    latency: float


LINKS = (
    Link("NVLink 4", 450e9, 3e-6),
    Link("PCIe 5 x16", 64e9, 5e-6),
    Link("InfiniBand 400 Gb/s", 50e9, 8e-6),
)


def gradient_bytes(shape: Shape, *, learn_decay: bool = False) -> int:
    """Bytes of one layer's float32 gradients: W [H,C] and two biases [H]; a learned decay's is stored as [H,H]."""
    C, H = shape.C, shape.H
    return FLOAT * (H * C + 2 * H + (H * H if learn_decay else 0))


def all_reduce_transfer(size: float, devices: int, link: Link) -> float:
    """Seconds that a ring's all-reduce of `size` bytes keeps each link busy, without latency."""
    return 2 * (devices - 1) / devices * size / link.bandwidth


def all_reduce(size: float, devices: int, link: Link) -> float:
    """Seconds of a ring's all-reduce of `size` bytes: each of its 2 (k - 1) hops waits for the one before."""
    return all_reduce_transfer(size, devices, link) + 2 * (devices - 1) * link.latency


def map_bytes(shape: Shape) -> int:
    """Bytes that a device sends forward when a sequence is split: b, lo and hi in float32 for each of N H membranes."""
    return 3 * FLOAT * shape.N * shape.H


def linear_map_bytes(shape: Shape) -> int:
    """Bytes that a device sends backward: a and b in float32."""
    return 2 * FLOAT * shape.N * shape.H


def split_work(shape: Shape) -> tuple[float, float]:
    """Values that a split sequence moves between memory and chips, over those of the whole one: forward, training.

    By the counts of `bounds`, without the weights: forward C + H a row, training 3 C + 7 H. Split, the maps take one
    more reading of the input, C, and in training the linear maps one more of gradient and membrane, 2 H.
    """
    C, H = shape.C, shape.H
    return (2 * C + H) / (C + H), (4 * C + 9 * H) / (3 * C + 7 * H)


def messages_table(devices: int) -> list[str]:
    """What data-parallel training sends for each shape, and how long it is on the way."""
    heads = ["shape", "gradient", "with a learned decay", *(link.name for link in LINKS)]
    lines = _head(heads)
    for shape in SHAPES.values():
        size = gradient_bytes(shape)
        times = [microseconds(1e6 * all_reduce_transfer(size, devices, link)) for link in LINKS]
        learned = _bytes(gradient_bytes(shape, learn_decay=True))
        lines.append(_line([shape.name, _bytes(size), learned, *times]))
    return lines


def split_table(devices: int) -> list[str]:
    """What a split sequence sends for each shape, and the most that splitting can gain where memory is the bound."""
    lines = _head(["shape", "N × H", "forward", "backward", "forward, 2", "training, 2", f"training, {devices}"])
    for shape in SHAPES.values():
        forward, training = split_work(shape)
        gains = [f"{count / work:.2f}×" for count, work in ((2, forward), (2, training), (devices, training))]
        sizes = [_bytes(map_bytes(shape)), _bytes(linear_map_bytes(shape))]
        lines.append(_line([shape.name, f"{shape.N} × {shape.H}", *sizes, *gains]))
    return lines


def measured_table(runs: Sequence[Sequence[Row]], devices: int) -> list[str]:
    """Each GPU's training steps, and what share of `devices` times its throughput is left if nothing overlaps."""
    lines: list[str] = []
    for rows in runs:
        steps = [row for row in rows if (row.label, row.pass_, row.input, row.status) == (OURS, "training", INPUT, OK)]
        steps = [row for row in steps if row.device_type == "cuda" and row.dtype == "float32" and row.shape in SHAPES]
        if not steps:
            continue
        first = steps[0]
        lines += [f"{first.device}, torch {first.torch}, float32, TF32 {first.tf32}, commit `{first.commit}`.", ""]
        lines += _head(["shape", "step on one", *(f"{devices} over {link.name}" for link in LINKS)])
        for row in steps:
            size = gradient_bytes(SHAPES[row.shape])
            seconds = 1e-6 * (row.median_us or 0.0)
            shares = [f"{seconds / (seconds + all_reduce(size, devices, link)):.0%}" for link in LINKS]
            lines.append(_line([row.shape, microseconds(1e6 * seconds), *shares]))
        lines.append("")
    return lines[:-1] or [NOT_MEASURED]


def page(text: str, runs: Sequence[Sequence[Row]], devices: int = DEVICES) -> str:
    """The page's text with its tables rewritten.

    Raises:
        ValueError: if a table's markers are not there exactly once.
    """
    return rewrite(
        text,
        {
            "messages": messages_table(devices),
            "measured": measured_table(runs, devices),
            "split": split_table(devices),
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the page in place."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Rewrite docs/scaling.md.")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files")
    options = parser.parse_args(arguments)
    runs = [read_rows(path) for path in committed(options.results)]
    options.page.write_text(page(options.page.read_text(encoding="utf-8"), runs), encoding="utf-8")
    print(f"{options.page}: rewritten")
    return 0


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|---|" + "--:|" * (len(cells) - 1)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


if __name__ == "__main__":
    sys.exit(main())
