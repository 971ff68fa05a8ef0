"""Chooses how the emulated kernels of a loaded library are scheduled, and whether they run at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def schedule(library: Path, order: str = "forward", resident_blocks: int = 4) -> Iterator[None]:
    """Within it, threads, warps and blocks run in this order, and so many blocks are resident at once.

    Args:
        library: the shared object that holds the kernels, as `build()` returns it.
        order: "forward", "reverse" or "random:SEED".
        resident_blocks: at least one.

    Raises:
        ValueError: for any other order or count.
    """
    emulator = ctypes.CDLL(str(library))

    def apply(order: str, resident_blocks: int) -> None:
        if emulator.leakypar_emulation_set_order(order.encode()) != 0:
            raise ValueError(f"order is {order!r}; expected 'forward', 'reverse' or 'random:SEED'")
        if emulator.leakypar_emulation_set_resident_blocks(resident_blocks) != 0:
            raise ValueError(f"resident_blocks is {resident_blocks}; expected a positive number")

    apply(order, resident_blocks)
    try:
        yield
    finally:
        environment = os.environ.get
        apply(environment("LEAKYPAR_EMULATION_ORDER", "forward"), int(environment("LEAKYPAR_EMULATION_RESIDENT", "4")))


@contextmanager
def refusal(library: Path, error: int) -> Iterator[None]:
    """Within it, every launch is refused with this number of a `cudaError_t`."""
    refuse = ctypes.CDLL(str(library)).leakypar_emulation_refuse_launches
    refuse(error)
    try:
        yield
    finally:
        refuse(0)
