"""The implementations that are timed: one file each, found by being here."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.implementations.base import Implementation, Layer, register, registered

__all__ = ["BASELINE", "FLOOR", "Implementation", "Layer", "all_implementations", "register"]

BASELINE = "nn.RNN"  # what ratios are taken to
FLOOR = "nn.Linear"


def all_implementations() -> list[Implementation]:
    """Every implementation of this package's files: the baseline, the floor, then the others in their files' order."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    first = {BASELINE: 0, FLOOR: 1}
    return sorted(registered, key=lambda implementation: first.get(implementation.name, 2))
