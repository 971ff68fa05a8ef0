"""The results as a picture: one digit on its way through the network, and the loss of every implementation."""

from __future__ import annotations

INK = "#1f2430"
FAINT = "#9aa1ad"
INPUT, HIDDEN, OUTPUT = "#3b6fb6", "#2a9d8f", "#e07a3f"
LAYERS = ("#d8a03c", "#7b5ea7", "#1f2430")

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
