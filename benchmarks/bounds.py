"""The least time a pass can take: bytes over copy bandwidth, operations over matrix rate.

A pass is a sequence of kernels. Each kernel moves each of its tensors once between memory and chip, and computes while
it moves, so it takes the larger of the two times; kernels follow one another, so a pass takes their sum. With
``R = T N`` rows, a product of ``R x C`` by ``C x H`` takes ``2 R C H`` operations:

====================  ==============================================  =================  ==========
kernel                reads                                           writes             operations
====================  ==============================================  =================  ==========
forward               x [R,C], W [H,C]                                spikes [R,H]       2 R C H
forward, training     x, W                                            spikes, membrane   2 R C H
backward scan         dL/dS [R,H], membrane [R,H]                     d_u [R,H]          none
d_W = d_u^T x         d_u, x                                          d_W [H,C]          2 R C H
d_x = d_u W           d_u, W                                          d_x [R,C]          2 R C H
====================  ==============================================  =================  ==========

A training step is the last four: the membrane is written once and read once, ``d_u`` written once and read twice. The
scan's own arithmetic (some ten operations per value) and the parameter vectors, ``H`` values each, are not counted.

``nn.Linear`` alone has the forward of the first row, spikes read as outputs, and the two products; ``dL/dy`` stands for
``d_u``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.shapes import Shape

PASSES = ("forward", "training")


@dataclass(frozen=True)
class Kernel:
    """What a kernel cannot avoid: ``values`` moved between memory and chip, ``operations`` of a matrix product."""

    values: int
    operations: int


@dataclass(frozen=True)
class Ceilings:
    """Rates measured on the device: a copy's bytes read plus written, and a product's operations, per second."""

    copy: float
    matrix: float


def layer_kernels(shape: Shape, pass_: str) -> tuple[Kernel, ...]:
    """The kernels of the spiking layer's ``"forward"`` or ``"training"`` pass."""
    R, C, H = shape.rows, shape.C, shape.H
    if pass_ == "forward":
        return (_product(shape),)
    forward = Kernel(R * C + H * C + 2 * R * H, 2 * R * C * H)
    backward_scan = Kernel(3 * R * H, 0)
    return (forward, backward_scan, _product(shape), _product(shape))


def linear_kernels(shape: Shape, pass_: str) -> tuple[Kernel, ...]:
    """The kernels of ``nn.Linear`` alone, for the same pass."""
    return (_product(shape),) * (1 if pass_ == "forward" else 3)


def bound_seconds(kernels: Sequence[Kernel], value_bytes: int, ceilings: Ceilings) -> float:
    """The least time for ``kernels`` one after the other, with values of ``value_bytes`` bytes.

    Tensors that stay in a cache from one call to the next are not moved through memory, so a small problem on a CPU can
    run below its bound.
    """
    return sum(
        max(kernel.values * value_bytes / ceilings.copy, kernel.operations / ceilings.matrix) for kernel in kernels
    )


def _product(shape: Shape) -> Kernel:
    """A product whose two operands and result are ``[R,C]``, ``[H,C]`` and ``[R,H]``, in any of the three roles."""
    R, C, H = shape.rows, shape.C, shape.H
    return Kernel(R * C + H * C + R * H, 2 * R * C * H)
