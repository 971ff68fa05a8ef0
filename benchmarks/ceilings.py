"""The two rates a bound is made of, measured on the device at hand in the same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.bounds import Ceilings
from benchmarks.problem import DTYPES
from benchmarks.timing import clock_for

# Copies larger than any cache; products large enough to fill the chip.
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
REPEATS = 10
ENOUGH_SECONDS = 1.0


def measure_ceilings(device: torch.device, dtype: str) -> Ceilings:
    """Times a large copy and large square products, of random values, and takes the best of each.

    Args:
        device: Where.
        dtype: Of the product's operands, a name of :data:`~benchmarks.problem.DTYPES`. For float32, TF32 as it is set.
    """
    clock = clock_for(device)

    def best(call: Callable[[], object]) -> float:
        least, spent = float("inf"), 0.0
        for repeat in range(REPEATS + 1):
            seconds = clock.time(call).device
            spent += seconds
            if repeat > 0:  # the first call warms up
                least = min(least, seconds)
            if repeat > 1 and spent > ENOUGH_SECONDS:
                break
        return least

    def copy_bandwidth() -> float:
        source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / best(lambda: target.copy_(source))

    def matrix_rate() -> float:
        size = PRODUCT_SIZE[device.type]
        a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(a)
        # The layouts of x W^T, d_u W and d_u^T x: a library may be many times slower at one than at another.
        layouts = ((a, b.t()), (a, b), (a.t(), b))
        seconds = min(best(partial(torch.mm, left, right, out=out)) for left, right in layouts)
        return 2 * size**3 / seconds

    return Ceilings(copy_bandwidth(), matrix_rate())
