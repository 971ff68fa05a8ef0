"""The shapes that are timed."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One problem: ``T`` time steps, ``N`` batch rows, ``C`` input features, ``H`` neurons."""

    name: str
    T: int
    N: int
    C: int
    H: int

    @property
    def rows(self) -> int:
        """``T * N``: rows of the projection's matrix product."""
        return self.T * self.N

    def __str__(self) -> str:
        return f"{self.name} ({self.T}, {self.N}, {self.C}, {self.H})"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tutorial", 25, 128, 784, 128),
        Shape("wide-tutorial", 25, 128, 784, 1000),
        Shape("speech", 250, 256, 700, 512),
        Shape("long", 1000, 32, 128, 128),
        Shape("streaming", 16384, 1, 64, 512),
        Shape("audio", 4096, 8, 256, 1024),
        Shape("square", 128, 64, 2048, 2048),
        Shape("onm", 500, 10, 512, 512),
    )
}

# Small enough for two CPU cores, and between them many channels, few channels and one channel row over a long time.
QUICK = ("tutorial", "long", "streaming", "onm")


# How cost grows with the number of steps and of neurons, everything else being fixed, with names such as ``T=1024``.
# Few channels over a long time, which only a scan makes parallel; and a batch over a wide layer.
GROWTH = {
    "T": tuple(Shape(f"T={T}", T, 4, 128, 128) for T in (1 << power for power in range(5, 17))),
    "H": tuple(Shape(f"H={H}", 256, 16, 256, H) for H in (1 << power for power in range(5, 13))),
}


def parse_shapes(text: str) -> list[Shape]:
    """Returns the shapes of a comma-separated list: names, sizes, and ``growth-T`` and ``growth-H`` for a whole family.

    Raises:
        ValueError: If one of them is none of these.
    """
    families = {f"growth-{size}": family for size, family in GROWTH.items()}
    return [shape for name in text.split(",") for shape in families.get(name) or (parse_shape(name),)]


def parse_shape(text: str) -> Shape:
    """Returns the shape of that name, or a shape of one's own.

    Args:
        text: A name of :data:`SHAPES`, or four sizes as ``TxNxCxH``, such as ``25x128x784x10``.

    Raises:
        ValueError: If ``text`` is neither.
    """
    if text in SHAPES:
        return SHAPES[text]
    for shape in (*GROWTH["T"], *GROWTH["H"]):
        if text == shape.name:
            return shape
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        return Shape(text, *map(int, text.split("x")))
    raise ValueError(f"shape: got {text!r}, expected one of {', '.join(SHAPES)}, or sizes as TxNxCxH")
