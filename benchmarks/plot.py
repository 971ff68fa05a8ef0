"""``python -m benchmarks.plot``: draws each CSV file's speed-ups over nn.RNN beside it, from the CSV alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.environment import ROOT
from benchmarks.implementations import BASELINE
from benchmarks.results import Row, read_rows
from benchmarks.table import INPUT, committed


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws one panel for each dtype and pass: a group of bars per shape, a bar per implementation.

    Args:
        rows: Of one run.
        path: The image to write; its suffix chooses the format.

    Raises:
        ValueError: If no row has a speed-up.
    """
    timed = [row for row in rows if row.input == INPUT and row.speedup_over_rnn and row.implementation != BASELINE]
    if not timed:
        raise ValueError("rows: got none with a speed-up over nn.RNN")
    dtypes, passes, shapes, labels = (
        list(dict.fromkeys(values))
        for values in zip(*((row.dtype, row.pass_, row.shape, row.label) for row in timed), strict=True)
    )
    figure, panels = plt.subplots(
        len(dtypes),
        len(passes),
        figsize=(1.2 * len(shapes) * len(passes) + 3, 3 * len(dtypes) + 1),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    width = 0.8 / len(labels)
    for dtype, line in zip(dtypes, panels, strict=True):
        for pass_, panel in zip(passes, line, strict=True):
            for index, label in enumerate(labels):
                heights = {
                    row.shape: row.speedup_over_rnn
                    for row in timed
                    if (row.dtype, row.pass_, row.label) == (dtype, pass_, label)
                }
                places = [shapes.index(shape) + (index - (len(labels) - 1) / 2) * width for shape in heights]
                # A bar is drawn from 1 up or down: on a logarithmic axis there is no zero to stand on.
                tops = [height - 1 for height in heights.values() if height is not None]
                panel.bar(places, tops, width, bottom=1, label=label, color=f"C{index}")
            panel.axhline(1, color="black", linewidth=0.8)
            panel.set_yscale("log")
            panel.set_xticks(range(len(shapes)), shapes, rotation=30, ha="right")
            panel.set_title(f"{pass_}, {dtype}")
            panel.grid(axis="y", alpha=0.3)
        line[0].set_ylabel("speed-up over nn.RNN")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(labels))
    first = rows[0]
    figure.suptitle(f"{first.device}, torch {first.torch}, leakypar {first.leakypar}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws an image beside each CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draw speed-ups over nn.RNN.")
    parser.add_argument("csv", nargs="*", type=Path, help="default: every complete run in benchmarks/results")
    options = parser.parse_args(arguments)
    files = options.csv or committed(ROOT / "benchmarks" / "results")
    if not files:
        parser.error("csv: found none in benchmarks/results; run python -m benchmarks first")
    for path in files:
        image = path.with_suffix(".png")
        draw(read_rows(path), image)
        print(f"{image}: drawn from {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
