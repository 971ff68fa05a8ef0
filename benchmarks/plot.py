"""``python -m benchmarks.plot``: draws each CSV file beside it, from the CSV alone.

A run over the named shapes becomes ``<stem>-speedup.png``, ``<stem>-bound.png`` and ``<stem>-memory.png``, a point for
each implementation and shape; a growth run ``<stem>-T.png`` and ``<stem>-H.png``, a line for each implementation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

from benchmarks.environment import RESULTS
from benchmarks.implementations import BASELINE, FLOOR
from benchmarks.results import OK, complete, microseconds, read
from benchmarks.shapes import GROWTH
from benchmarks.table import OURS, RECOMPUTE

# Ours in warm colours, the baseline and the floor in black and grey, rivals in cool ones.
STYLES: dict[str, tuple[str, str]] = {
    BASELINE: ("#222222", "o"),
    FLOOR: ("#9a9a9a", "o"),
    OURS: ("#d62728", "D"),
    RECOMPUTE: ("#ff9f4a", "D"),
    "leakypar fused (sequential)": ("#a50f4b", "<"),
    "leakypar fused (look_back)": ("#e377c2", ">"),
    "leakypar fused (project_scan)": ("#7f1d1d", "P"),
    "snntorch LeakyParallel": ("#1f4e9c", "s"),
    "snntorch Leaky": ("#5b9bd5", "s"),
    "snntorch LinearLeaky": ("#9ecae1", "s"),
    "spikingjelly (LIF)": ("#1b7f5c", "^"),
    "spikingjelly (PLIF)": ("#7fcdab", "^"),
    "torch.compile": ("#7b52ab", "v"),
    "associative_scan": ("#b9a3e3", "v"),
}
OTHER = ("#8c6d31", "X")
WIDTH = 0.7  # of a shape's column, over which its points are spread
# Column, title, how a tick is written, a line that is marked.
FIGURES = {
    "speedup": ("speedup_over_rnn", f"Speed-up over {BASELINE}", "{:g}×", 1.0),
    "bound": ("share_of_bound", "Share of the bound", "{:.0%}", 1.0),
    "memory": ("peak_MiB", "Peak memory, MiB", "{:g}", None),
}
Panel = Callable[[Any, str, pd.DataFrame, dict[str, Any]], None]


def draw(rows: pd.DataFrame, path: Path) -> list[Path]:
    """Draws what there is to draw of a run with spikes, on the most threads; returns the images, beside ``path``.

    Raises:
        ValueError: If nothing was timed.
    """
    timed = rows[(rows.status == OK) & (rows.input == "spikes")].assign(peak_MiB=rows.peak_bytes / 2**20)
    timed = timed[timed.threads == timed.threads.max()]
    figures: dict[str, tuple[pd.DataFrame, tuple[float, float], str, Panel]] = {}
    for size in GROWTH:
        family = timed[timed["shape"] == size + "=" + timed[size].astype(str)]
        timed = timed.drop(family.index)
        fixed = ", ".join(f"{name} = {family[name].max()}" for name in "TNCH" if name != size)
        figures[size] = family, (5.4, 3.8), f"Time over {size}; {fixed}", _lines(size)
    for name, (column, title, tick, mark) in FIGURES.items():
        found = timed[timed[column].notna() & ((name != "speedup") | (timed.label != BASELINE))]
        figures[name] = found, (0.85 * found["shape"].nunique() + 1.2, 3.2), title, _points(column, tick, mark, found)
    images = {path.with_name(f"{path.stem}-{name}.png"): each for name, each in figures.items() if not each[0].empty}
    if not images:
        raise ValueError("rows: got none that was timed")
    for image, each in images.items():
        _figure(*each, image)
    return list(images)


def _lines(size: str) -> Panel:
    def panel(axes: Any, label: str, found: pd.DataFrame, style: dict[str, Any]) -> None:
        axes.loglog(found[size], found.median_us, linewidth=2.2 if label == OURS else 1.1, **style)
        if label == OURS:
            axes.loglog(found[size], found.bound_us, "--", color="#222222", linewidth=0.9, label="bound of the layer")
        axes.set_xscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda y, _: microseconds(y))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(size)

    return panel


def _points(column: str, tick: str, mark: float | None, rows: pd.DataFrame) -> Panel:
    shapes, labels = list(dict.fromkeys(rows["shape"])), _ordered(rows)

    def panel(axes: Any, label: str, found: pd.DataFrame, style: dict[str, Any]) -> None:
        shift = WIDTH * ((labels.index(label) + 0.5) / len(labels) - 0.5)
        axes.plot([shapes.index(shape) + shift for shape in found["shape"]], found[column], linestyle="none", **style)
        axes.set_xticks(range(len(shapes)), shapes, rotation=30, ha="right")
        if column == "share_of_bound":
            axes.set_ylim(0, 1.05 * max(1.0, rows[column].max()))
        else:
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: tick.format(y))
        if mark:
            axes.axhline(mark, color="#222222", linewidth=0.8)

    return panel


def _figure(rows: pd.DataFrame, size: tuple[float, float], title: str, panel: Panel, path: Path) -> None:
    """A panel of ``size`` inches for each dtype (down) and pass (across)."""
    dtypes, passes = list(dict.fromkeys(rows.dtype)), list(dict.fromkeys(rows["pass"]))
    figsize = (size[0] * len(passes), size[1] * len(dtypes) + 1.4)
    image, grid = plt.subplots(
        len(dtypes), len(passes), figsize=figsize, squeeze=False, sharey=True, layout="constrained"
    )
    legend: dict[str, Any] = {}
    for (dtype, pass_), same in rows.groupby(["dtype", "pass"], sort=False):
        axes = grid[dtypes.index(dtype)][passes.index(pass_)]
        for label in _ordered(same):
            found = same[same.label == label]
            color, marker = STYLES.get(label, OTHER)
            face = color if (found.function == "same").all() else "white"
            style = {"color": color, "marker": marker, "markersize": 5, "markerfacecolor": face, "label": label}
            panel(axes, label, found, style | {"zorder": 4 if label == OURS else 3})
        axes.set_title(f"{pass_}, {dtype}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.tick_params(labelsize=8)
        legend |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    image.legend(legend.values(), legend, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    first = rows.iloc[0]
    machine = f"{first.device}, {first.threads} threads, torch {first.torch}, leakypar {first.leakypar}"
    image.suptitle(f"{title}; hollow: a near relative of the layer\n{machine}", fontsize=10, x=0.01, ha="left")
    image.savefig(path, dpi=130)
    plt.close(image)


def _ordered(rows: pd.DataFrame) -> list[str]:
    """The implementations in a fixed order, those without a style last."""
    found = dict.fromkeys(rows.label)
    return [*(label for label in STYLES if label in found), *(label for label in found if label not in STYLES)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws images beside each CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draw what was measured.")
    parser.add_argument("csv", nargs="*", type=Path, help="default: every complete run in benchmarks/results")
    options = parser.parse_args(arguments)
    files = options.csv or complete(RESULTS)
    if not files:
        parser.error("csv: found none in benchmarks/results; run python -m benchmarks first")
    for path in files:
        for image in draw(read(path), path):
            print(f"{image}: drawn from {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
