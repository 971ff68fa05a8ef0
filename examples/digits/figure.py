"""The results as a picture: one digit on its way through the network, and the loss of every implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from .trace import Array, Trace
from .training import Result

INK, FAINT = "#1f2430", "#9aa1ad"
INPUT, HIDDEN, OUTPUT, THRESHOLD = "#3b6fb6", "#2a8f85", "#d8702f", "#c0392b"
CURVES = ("#f0b94d", "#7b5ea7", "#1f2430")

STYLE = {
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

MEMBRANES = 4


def draw(trace: Trace, results: Sequence[Result], path: Path) -> None:
    """Writes the picture, in the format that the name of the file asks for."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 8.2))
        figure.suptitle(
            f"A digit on its way through a spiking network: it is a {trace.label}, and is read as a {trace.prediction}",
            x=0.04,
            ha="left",
            fontsize=15,
            fontweight="bold",
        )
        top = GridSpec(1, 4, figure, 0.04, 0.545, 0.975, 0.88, wspace=0.24, width_ratios=(0.85, 1.25, 1.25, 1.05))
        bottom = GridSpec(1, 2, figure, 0.04, 0.07, 0.975, 0.445, wspace=0.12, width_ratios=(1.12, 1))
        _digit(figure.add_subplot(top[0]), trace)
        _raster(figure.add_subplot(top[1]), trace.pixels, "784 pixels: input spikes", INPUT)
        _raster(figure.add_subplot(top[2]), trace.hidden, f"{trace.hidden.shape[1]} hidden neurons", HIDDEN)
        _output(figure.add_subplot(top[3]), trace)
        _membranes(figure, bottom[0].subgridspec(2, 2, hspace=0.42, wspace=0.13), trace)
        _losses(figure.add_subplot(bottom[1]), results)
        figure.savefig(path, dpi=150, facecolor="white")


def _digit(axes: Axes, trace: Trace) -> None:
    axes.set_title("The digit")
    axes.imshow(trace.image, cmap="gray_r", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def _raster(axes: Axes, spikes: Array, title: str, color: str) -> None:
    """A mark for every spike, as wide as its time step and at least as high as a line."""
    steps, neurons = spikes.shape
    axes.set_title(title)
    time, neuron = np.nonzero(spikes)
    axes.hlines(neuron, time + 0.5, time + 1.5, colors=color, linewidths=max(0.5, 150 / neurons))
    axes.set(xlim=(0.5, steps + 0.5), ylim=(neurons - 0.5, -0.5), xlabel="time step", xticks=_steps(steps))


def _output(axes: Axes, trace: Trace) -> None:
    """The spikes of the ten classes, and at the right how many there were of each."""
    steps, classes = trace.output.shape
    _raster(axes, trace.output, "10 output neurons", FAINT)
    axes.collections[0].remove()
    for neuron, spikes in enumerate(trace.output.T):
        color = OUTPUT if neuron == trace.prediction else FAINT
        axes.hlines(np.full(int(np.count_nonzero(spikes)), neuron), *_spans(spikes), colors=color, linewidths=9)
        axes.text(
            steps + 1.2,
            neuron,
            f"{np.count_nonzero(spikes)}",
            va="center",
            color=color if neuron == trace.prediction else INK,
            fontweight="bold" if neuron == trace.prediction else "normal",
        )
    axes.text(steps + 1.2, -1.05, "count", va="center", fontsize=8)
    axes.set_yticks(range(classes))
