"""``python -m benchmarks.plot``: draws each CSV file beside it, from the CSV alone, a line for each implementation.

A run of ``--growth`` becomes ``<stem>-T.png`` and ``<stem>-H.png``; one of ``--memory`` or ``--rates`` ``<stem>.png``.
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
from benchmarks.results import OK, kind_of, microseconds, read
from benchmarks.shapes import GROWTH
from benchmarks.table import DENSE, EVENTS, OURS, RECOMPUTE, SNNTORCH, crossing

# Ours in warm colours, the baseline and the floor in black and grey, rivals in cool ones.
STYLES: dict[str, tuple[str, str]] = {
    BASELINE: ("#222222", "o"),
    FLOOR: ("#9a9a9a", "o"),
    OURS: ("#d62728", "D"),
    RECOMPUTE: ("#ff9f4a", "D"),
    DENSE: ("#a50f4b", "<"),
    "leakypar fused (dense recompute)": ("#e377c2", ">"),
    EVENTS: ("#f7b6d2", "X"),
    "leakypar fused (sequential)": ("#a50f4b", "<"),
    "leakypar fused (look_back)": ("#e377c2", ">"),
    "leakypar fused (project_scan)": ("#7f1d1d", "P"),
    SNNTORCH: ("#1f4e9c", "s"),
    "snntorch Leaky": ("#5b9bd5", "s"),
    "snntorch LinearLeaky": ("#9ecae1", "s"),
    "spikingjelly (LIF)": ("#1b7f5c", "^"),
    "spikingjelly (PLIF)": ("#7fcdab", "^"),
    "spikingjelly (LIF checkpoint)": ("#7fcdab", "v"),
    "torch.compile": ("#7b52ab", "v"),
    "associative_scan": ("#b9a3e3", "v"),
}
OTHER = ("#8c6d31", "X")
BLACK = "#222222"


def draw(rows: pd.DataFrame, path: Path) -> list[Path]:
    """Draws what there is to draw of the run in ``path``; returns the images, beside it.

    Raises:
        ValueError: If nothing was timed.
    """
    timed = rows[rows.status == OK]
    if timed.empty:
        raise ValueError("rows: got none that was timed")
    timed = timed.assign(GiB=timed.peak_bytes / 2**30, rate=100 * timed.spike_rate)
    most, image = timed[timed.threads == timed.threads.max()], path.with_suffix(".png")
    if kind_of(path) == "memory":
        _figure(
            most, "T", "GiB", [""] * len(most), "Memory of a training step of four layers", "{:g} GiB".format, image
        )
        return [image]
    if kind_of(path) == "rates":
        title = "Time over that of nn.Linear, over the rate of the input's spikes in %; dotted: where events meet dense"
        fewest = timed[timed.threads == timed.threads.min()]  # the table has the others
        _figure(fewest, "rate", "time_over_linear", fewest["shape"], title, "{:g}×".format, image)
        return [image]
    images = []
    for size in GROWTH:
        family = most[most["shape"] == size + "=" + most[size].astype(str)]
        if not family.empty:
            fixed = ", ".join(f"{name} = {family[name].max()}" for name in "TNCH" if name != size)
            images.append(path.with_name(f"{path.stem}-{size}.png"))
            _figure(family, size, "median_us", family.dtype, f"Time over {size}; {fixed}", microseconds, images[-1])
    return images


def _figure(
    rows: pd.DataFrame, x: str, y: str, down: Sequence[str], title: str, tick: Callable[[float], str], path: Path
) -> None:
    """Lines of ``y`` over ``x``: a column of panels for each pass, a row of them for each of ``down``, a row's name."""
    rows = rows.assign(row=down)
    names, passes = list(dict.fromkeys(rows.row)), list(dict.fromkeys(rows["pass"]))
    width = max(8.5, 5.4 * len(passes))
    options: dict[str, Any] = {
        "figsize": (width, 3.8 * len(names) + 1.4),
        "squeeze": False,
        "sharey": True,
        "layout": "constrained",
    }
    image, grid = plt.subplots(len(names), len(passes), **options)
    legend: dict[str, Any] = {}
    for (name, pass_), same in rows.groupby(["row", "pass"], sort=False):
        axes = grid[names.index(name)][passes.index(pass_)]
        found = dict.fromkeys(same.label)
        for label in sorted(found, key=[*STYLES, *found].index):
            line, (color, marker) = same[same.label == label], STYLES.get(label, OTHER)
            face = color if (line.function == "same").all() else "white"
            style = {"color": color, "marker": marker, "markersize": 5, "markerfacecolor": face, "label": label}
            ours = label == OURS
            axes.loglog(line[x], line[y], linewidth=2.2 if ours else 1.1, zorder=4 if ours else 3, **style)
            if ours and y == "median_us":
                axes.loglog(line[x], line.bound_us, "--", color=BLACK, linewidth=0.9, label="bound of the layer")
        if y != "median_us":
            axes.set_yscale("log", base=2)
        if x == "rate":
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.set_xscale("log", base=2)
        if x == "rate" and (where := crossing(same)):
            axes.axvline(where, linestyle=":", color=BLACK, linewidth=0.9)
            axes.text(where, 1.0, f" {where:.0f}%", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
        axes.yaxis.set_major_formatter(lambda value, _: tick(value))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("rate, %" if x == "rate" else x)
        axes.set_title(", ".join(filter(None, (pass_, name))), fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.tick_params(labelsize=8)
        legend |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    image.legend(legend.values(), legend, loc="outside lower center", ncols=int(width / 2.8), fontsize=8, frameon=False)
    first = rows.iloc[0]
    machine = f"{first.device}, {rows.threads.max()} threads, torch {first.torch}, leakypar {first.leakypar}"
    image.suptitle(f"{title}; hollow: a near relative of the layer\n{machine}", fontsize=10, x=0.01, ha="left")
    image.savefig(path, dpi=130)
    plt.close(image)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws images beside each CSV file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draw what was measured.")
    parser.add_argument("csv", nargs="*", type=Path, help="default: those in benchmarks/results that a page shows")
    options = parser.parse_args(arguments)
    drawn = [path for path in sorted(RESULTS.glob("*.csv")) if kind_of(path) in ("growth", "memory", "rates")]
    for path in options.csv or drawn:
        for image in draw(read(path), path):
            print(f"{image}: drawn from {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
