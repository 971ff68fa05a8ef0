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

A training step is the last four, and that of a first layer lacks d_x. The scan's own arithmetic (some ten operations
per value) and the parameter vectors, ``H`` values each, are not counted. ``nn.Linear`` alone has the first row and the
two products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from leakypar.benchmark import FIRST_LAYER
from leakypar.measuring import DTYPES, Shape, clock_for

# Copies larger than any cache; products large enough to fill the chip.
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
REPEATS = 5


class Kernel(NamedTuple):
    """What a kernel cannot avoid: ``values`` moved between memory and chip, ``operations`` of a matrix product."""

    values: int
    operations: int


class Ceilings(NamedTuple):
    """Rates measured on the device: a copy's bytes read plus written, and a product's operations, per second."""

    copy: float
    matrix: float


def layer_kernels(shape: Shape, pass_: str) -> tuple[Kernel, ...]:
    """The kernels of the spiking layer's pass."""
    (product, *gradients), R = linear_kernels(shape, pass_), shape.rows
    if pass_ == "forward":
        return (product,)
    forward = Kernel(product.values + R * shape.H, product.operations)
    return (forward, Kernel(3 * R * shape.H, 0), *gradients)


def linear_kernels(shape: Shape, pass_: str) -> tuple[Kernel, ...]:
    """The kernels of ``nn.Linear`` alone: products among ``[R,C]``, ``[H,C]`` and ``[R,H]``, in any of three roles."""
    R, C, H = shape.rows, shape.C, shape.H
    return (Kernel(R * C + H * C + R * H, 2 * R * C * H),) * {"forward": 1, FIRST_LAYER: 2, "training": 3}[pass_]


def bound_seconds(kernels: Sequence[Kernel], value_bytes: int, ceilings: Ceilings) -> float:
    """The least time for ``kernels`` one after the other, with values of ``value_bytes`` bytes.

    Tensors that stay in a cache from one call to the next are not moved through memory, so a small problem on a CPU can
    run below its bound.
    """
    return sum(max(each.values * value_bytes / ceilings.copy, each.operations / ceilings.matrix) for each in kernels)


def measure_ceilings(device: torch.device, dtype: str) -> Ceilings:
    """Times a large copy and large square products of random values; the best of each. For float32, TF32 as it is."""
    clock = clock_for(device)

    def best(call: Callable[[], object]) -> float:
        clock.time(call)
        return min(clock.time(call).device for _ in range(REPEATS))

    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    copy = 2 * source.nbytes / best(partial(torch.empty_like(source).copy_, source))
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    # The layouts of x W^T, d_u W and d_u^T x: a library may be many times slower at one than at another.
    layouts, out = ((a, b.t()), (a, b), (a.t(), b)), torch.empty_like(a)
    return Ceilings(copy, 2 * size**3 / min(best(partial(torch.mm, *pair, out=out)) for pair in layouts))
