"""The shapes that are timed: those of :mod:`leakypar.benchmark`, and two families that grow."""

from __future__ import annotations

import re

from leakypar.benchmark import ONE_SEQUENCE, QUICK, SHAPES
from leakypar.measuring import Shape

__all__ = ["GROWTH", "NAMED", "QUICK", "SHAPES", "Shape", "parse_shapes"]

NAMED = {**SHAPES, ONE_SEQUENCE.name: ONE_SEQUENCE}
# How cost grows with the number of steps and of neurons, everything else being fixed, with names such as ``T=1024``.
# Few channels over a long time, which only a scan makes parallel; and a batch over a wide layer.
GROWTH = {
    "T": tuple(Shape(f"T={T}", T, 4, 128, 128) for T in (1 << power for power in range(5, 17))),
    "H": tuple(Shape(f"H={H}", 256, 16, 256, H) for H in (1 << power for power in range(5, 13))),
}


def parse_shapes(text: str) -> list[Shape]:
    """Returns the shapes of a list: names, sizes such as ``25x128x784x10``, ``growth-T`` and ``growth-H`` for a family.

    Raises:
        ValueError: If one of them is none of these.
    """
    known = {f"growth-{size}": family for size, family in GROWTH.items()}
    known |= {shape.name: (shape,) for shape in (*NAMED.values(), *GROWTH["T"], *GROWTH["H"])}
    for name in text.split(","):
        if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", name):
            known[name] = (Shape(name, *map(int, name.split("x"))),)
        if name not in known:
            raise ValueError(f"shape: got {name!r}, expected one of {', '.join(NAMED)}, or sizes as TxNxCxH")
    return [shape for name in text.split(",") for shape in known[name]]
