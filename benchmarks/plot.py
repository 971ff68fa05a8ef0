"""``python -m benchmarks.plot``: draws each CSV file beside it, from the CSV alone.

A run over the named shapes becomes ``<stem>-speedup.png``, ``<stem>-bound.png`` and ``<stem>-memory.png``, a point for
each implementation and shape; a growth run ``<stem>-T.png`` and ``<stem>-H.png``, a line for each implementation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from benchmarks.environment import ROOT
from benchmarks.implementations import BASELINE, FLOOR
from benchmarks.results import Row, read_rows
from benchmarks.shapes import GROWTH
from benchmarks.show import microseconds
from benchmarks.table import INPUT, OURS, complete

# Ours in warm colours and solid, the baseline and the floor in black and grey, rivals in cool ones.
STYLES: dict[str, tuple[str, str]] = {
    BASELINE: ("#222222", "o"),
    FLOOR: ("#9a9a9a", "o"),
    OURS: ("#d62728", "D"),
    "leakypar fused (recompute)": ("#ff9f4a", "D"),
    "leakypar fused (lane)": ("#a50f4b", "<"),
    "leakypar fused (split)": ("#e377c2", ">"),
    "leakypar fused (fused)": ("#7f1d1d", "P"),
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


@dataclass(frozen=True)
class Figure:
    """One value of each timed row, a point each.

    Attributes:
        name: The end of the image's name.
        title: What is drawn, for the axis.
        value: Reads it from a row; None where the row has none.
        shown: Writes it at a tick of the axis.
        logarithmic: The axis is; else it starts at zero.
        line: A value that is marked, such as a speed-up of one.
    """

    name: str
    title: str
    value: Callable[[Row], float | None]
    shown: Any
    logarithmic: bool = True
    line: float | None = None


FIGURES = (
    Figure(
        "speedup",
        f"speed-up over {BASELINE}",
        lambda row: None if row.label == BASELINE else row.speedup_over_rnn,
        FuncFormatter(lambda y, _: f"{y:g}×"),
        line=1.0,
    ),
    Figure("bound", "share of the bound", lambda row: row.share_of_bound, PercentFormatter(1, 0), False, 1.0),
    Figure(
        "memory",
        "peak memory, MiB",
        lambda row: row.peak_bytes / 2**20 if row.peak_bytes else None,
        FuncFormatter(lambda y, _: f"{y:g}"),
    ),
)


def draw_points(rows: Sequence[Row], figure: Figure, path: Path) -> None:
    """Draws a panel for each dtype and pass, a column for each shape.

    Raises:
        ValueError: If no row has the value.
    """
    timed = [(row, value) for row in rows if row.input == INPUT and (value := figure.value(row)) is not None]
    if not timed:
        raise ValueError(f"rows: got none with a {figure.title}")
    shapes = list(dict.fromkeys(row.shape for row, _ in timed))
    labels = _labels([row for row, _ in timed])
    image, panels = _panels([row for row, _ in timed], (0.85 * len(shapes) + 1.2, 3.2))
    for (dtype, pass_), panel in panels.items():
        for place in range(0, len(shapes), 2):
            panel.axvspan(place - 0.5, place + 0.5, color="#f4f4f4", zorder=0)
        for index, label in enumerate(labels):
            color, marker = STYLES.get(label, OTHER)
            offset = WIDTH * ((index + 0.5) / len(labels) - 0.5)
            found = [(row, value) for row, value in timed if (row.dtype, row.pass_, row.label) == (dtype, pass_, label)]
            panel.scatter(
                [shapes.index(row.shape) + offset for row, _ in found],
                [value for _, value in found],
                46 if label == OURS else 24,
                facecolors=_face(color, [row for row, _ in found]),
                edgecolors=color,
                marker=marker,
                label=label,
                zorder=3,
            )
        if figure.line is not None:
            panel.axhline(figure.line, color="#222222", linewidth=0.8)
        if figure.logarithmic:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(figure.shown)
        panel.set_xlim(-0.5, len(shapes) - 0.5)
        panel.set_xticks(range(len(shapes)), shapes, rotation=30, ha="right")
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    if not figure.logarithmic:
        next(iter(panels.values())).set_ylim(0, 1.05 * max([figure.line or 0.0, *(value for _, value in timed)]))
    _finish(image, panels, figure.title, rows[0], path)


def draw_growth(rows: Sequence[Row], size: str, path: Path) -> None:
    """Draws time over ``T`` or ``H``, both axes logarithmic, a panel for each dtype and pass.

    Args:
        rows: Of one run.
        size: ``"T"`` or ``"H"``.
        path: The image to write.

    Raises:
        ValueError: If no row of that family was timed.
    """
    timed = [row for row in _family(rows, size) if row.median_us is not None]
    if not timed:
        raise ValueError(f"rows: got none that shows growth with {size}")
    image, panels = _panels(timed, (5.4, 3.8))
    for (dtype, pass_), panel in panels.items():
        for label in _labels(timed):
            found = [row for row in timed if (row.dtype, row.pass_, row.label) == (dtype, pass_, label)]
            color, marker = STYLES.get(label, OTHER)
            sizes = [getattr(row, size) for row in found]
            panel.plot(
                sizes,
                [row.median_us for row in found],
                color=color,
                marker=marker,
                markersize=4,
                markerfacecolor=_face(color, found),
                linewidth=2.2 if label == OURS else 1.1,
                label=label,
                zorder=4 if label == OURS else 3,
            )
        ours = [row for row in timed if (row.dtype, row.pass_, row.label) == (dtype, pass_, OURS)]
        sizes, bounds = [getattr(row, size) for row in ours], [row.bound_us for row in ours]
        panel.plot(sizes, bounds, "--", color="#222222", linewidth=0.9, label="bound of the layer")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: microseconds(y)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(size)
        panel.grid(color="#e4e4e4", linewidth=0.6)
    first = timed[0]
    fixed = ", ".join(f"{name} = {getattr(first, name)}" for name in ("T", "N", "C", "H") if name != size)
    _finish(image, panels, f"time over {size}; {fixed}", first, path)


def draw(rows: Sequence[Row], path: Path) -> list[Path]:
    """Draws what there is to draw.

    Args:
        rows: Of one run.
        path: The CSV file they are from, beside which the images are written.

    Returns:
        The images.

    Raises:
        ValueError: If nothing was timed.
    """
    images = []
    for size in GROWTH:
        if any(row.median_us is not None for row in _family(rows, size)):
            images.append(path.with_name(f"{path.stem}-{size}.png"))
            draw_growth(rows, size, images[-1])
    growing = {row.shape for size in GROWTH for row in _family(rows, size)}
    named = [row for row in rows if row.shape not in growing]
    for figure in FIGURES:
        if any(row.input == INPUT and figure.value(row) is not None for row in named):
            images.append(path.with_name(f"{path.stem}-{figure.name}.png"))
            draw_points(named, figure, images[-1])
    if not images:
        raise ValueError("rows: got none that was timed")
    return images


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws images beside each CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draw what was measured.")
    parser.add_argument("csv", nargs="*", type=Path, help="default: every complete run in benchmarks/results")
    options = parser.parse_args(arguments)
    files = options.csv or complete(ROOT / "benchmarks" / "results")
    if not files:
        parser.error("csv: found none in benchmarks/results; run python -m benchmarks first")
    for path in files:
        for image in draw(read_rows(path), path):
            print(f"{image}: drawn from {path.name}")
    return 0


def _family(rows: Sequence[Row], size: str) -> list[Row]:
    return [row for row in rows if row.shape == f"{size}={getattr(row, size)}"]


def _face(color: str, rows: Sequence[Row]) -> str:
    """Markers are hollow where something near the layer is computed, and not the layer."""
    return "white" if any(row.function != "same" for row in rows) else color


def _labels(rows: Sequence[Row]) -> list[str]:
    """The implementations in a fixed order, those without a style last."""
    found = dict.fromkeys(row.label for row in rows)
    return [*(label for label in STYLES if label in found), *(label for label in found if label not in STYLES)]


def _panels(rows: Sequence[Row], size: tuple[float, float]) -> tuple[Any, dict[tuple[str, str], Any]]:
    """A figure with a panel of ``size`` inches for each dtype (down) and pass (across)."""
    dtypes, passes = (list(dict.fromkeys(values)) for values in zip(*((r.dtype, r.pass_) for r in rows), strict=True))
    figsize = (size[0] * len(passes), size[1] * len(dtypes) + 1.4)
    figure, grid = plt.subplots(
        len(dtypes), len(passes), figsize=figsize, squeeze=False, sharey=True, layout="constrained"
    )
    panels = {
        (dtype, pass_): panel
        for dtype, line in zip(dtypes, grid, strict=True)
        for pass_, panel in zip(passes, line, strict=True)
    }
    for (dtype, pass_), panel in panels.items():
        panel.set_title(f"{pass_}, {dtype}", fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels


def _finish(image: Any, panels: dict[tuple[str, str], Any], title: str, first: Row, path: Path) -> None:
    found: dict[str, Any] = {}
    for panel in panels.values():
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    image.legend(found.values(), found, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    heading = f"{title[0].upper()}{title[1:]}; hollow: a near relative of the layer"
    threads = f"{first.threads} thread{'s' * (first.threads != 1)}"
    machine = f"{first.device}, {threads}, torch {first.torch}, leakypar {first.leakypar}"
    image.suptitle(f"{heading}\n{machine}", fontsize=10, x=0.01, ha="left")
    image.savefig(path, dpi=130)
    plt.close(image)


if __name__ == "__main__":
    sys.exit(main())
