"""The results as a picture: one digit on its way through the network, and the loss of every implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .trace import Array, Trace
from .training import Result

INK = "#1f2430"
FAINT = "#9aa1ad"
INPUT, HIDDEN, OUTPUT = "#3b6fb6", "#2a9d8f", "#e07a3f"
LAYERS = ("#d8a03c", "#7b5ea7", "#1f2430")

STYLE: Any = {  # matplotlib types its keys one by one
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

SHOWN_NEURONS = 4
"""Hidden neurons whose membrane is drawn."""


def draw(seen: Trace, results: Sequence[Result], output: Path) -> None:
    """Writes the picture.

    Args:
        seen: one digit on its way through the network.
        results: of every implementation, for their loss.
        output: the file; its ending says the format.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 8), layout="constrained")
        panels = figure.subplot_mosaic(
            [["digit", "pixels", "pixels"], ["loss", "hidden", "hidden"], ["loss", "membrane", "membrane"]],
            width_ratios=[1, 1, 1],
        )
        panels["digit"].imshow(seen.image, cmap="gray_r")
        panels["digit"].set(title=f"A {seen.label}, read as {seen.prediction}", xticks=[], yticks=[])
        _raster(panels["pixels"], seen.pixels, "Input spikes", "pixel", INPUT)
        _raster(panels["hidden"], seen.hidden, "Hidden and output spikes", "neuron", HIDDEN)
        _raster(panels["hidden"], seen.output, "Hidden and output spikes", "neuron", OUTPUT, seen.hidden.shape[1] + 4)
        _membranes(panels["membrane"], seen)
        _losses(panels["loss"], results)
        figure.savefig(output, dpi=150)
        plt.close(figure)


def _raster(axes: Axes, spikes: Array, title: str, ylabel: str, colour: str, above: int = 0) -> None:
    steps, neurons = np.nonzero(spikes)
    axes.scatter(steps, neurons + above, s=6, marker="|", color=colour, linewidths=1.2)
    axes.set(title=title, xlabel="time step", ylabel=ylabel, xlim=(-0.5, len(spikes) - 0.5))


def _membranes(axes: Axes, seen: Trace) -> None:
    # Those that spike about half the time cross the threshold most.
    crossing = np.argsort(np.abs(seen.hidden.mean(0) - 0.5), kind="stable")[:SHOWN_NEURONS]
    for neuron in crossing:
        axes.plot(seen.membrane[:, neuron], linewidth=1.4, label=f"neuron {neuron}")
    axes.axhline(seen.threshold, color=INK, linestyle="--", linewidth=1, label="threshold")
    axes.set(title="Membrane of hidden neurons", xlabel="time step", xlim=(-0.5, len(seen.membrane) - 0.5))
    axes.margins(y=0.2)  # room for the legend
    axes.legend(frameon=False, fontsize=7, ncols=SHOWN_NEURONS + 1, loc="upper left")


def _losses(axes: Axes, results: Sequence[Result]) -> None:
    # Thinner lines over thicker ones: where the curves agree, all of them can be seen.
    for place, (result, colour) in enumerate(zip(results, LAYERS, strict=False)):
        axes.plot(result.losses, color=colour, linewidth=5 - 2 * place, label=result.name)
    axes.set(title="Loss", xlabel="training step", ylabel="cross-entropy", yscale="log")
    axes.legend(frameon=False)
