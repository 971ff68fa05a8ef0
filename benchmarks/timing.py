"""Clocks, and what is made of their readings."""

from __future__ import annotations

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MICROSECOND = 1e-6


@dataclass(frozen=True)
class Reading:
    """One call's time in seconds: on the device, and for the caller, who waits for it to end."""

    device: float
    wall: float


class Clock(ABC):
    """Times one call at a time."""

    @abstractmethod
    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Reading:
        """Times ``call``, right after ``prepare``, which is not timed. A GPU's clock runs the two twice."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when the device has nothing left to do."""


class HostClock(Clock):
    """For a CPU, where a call has ended when it returns."""

    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Reading:
        prepare()
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        return Reading(elapsed, elapsed)

    def wait(self) -> None:
        return


class CudaClock(Clock):
    """For a GPU: events on its stream, the L2 cache overwritten before every call.

    The device's time is what its kernels take when it never waits for the host: before the first event, the stream is
    held busy for longer than the host needs to queue the call. The wall time is of another call, launches included.
    """

    spin_cycles_per_second = 2e9  # about a GPU's clock: the time to spin need not be exact
    longest_spin = 0.05  # seconds; a call with more launches than the queue holds waits for the device anyway

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device
        self._flush = torch.empty(max(2 * cache, 32 << 20), dtype=torch.int8, device=device)

    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Reading:
        prepare()
        self._flush.zero_()
        self.wait()
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        self.wait()
        wall = time.perf_counter() - start

        prepare()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._flush.zero_()
        spin = min(2 * queued + 20 * MICROSECOND, self.longest_spin)
        torch.cuda._sleep(int(spin * self.spin_cycles_per_second))  # type: ignore[no-untyped-call]
        events[0].record()
        call()
        events[1].record()
        self.wait()
        return Reading(events[0].elapsed_time(events[1]) * 1e-3, wall)

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else HostClock()


@dataclass(frozen=True)
class Summary:
    """Microseconds: the median, the median absolute deviation from it, and the least."""

    median: float
    spread: float
    least: float


def summarize(seconds: Sequence[float]) -> Summary:
    """The median and spread of times in seconds, in microseconds.

    Raises:
        ValueError: If there is none, or one is not a finite positive number: no call takes no time.
    """
    if not seconds:
        raise ValueError("times: got none")
    for value in seconds:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"times: got {value} s, expected finite and positive ones")
    median = statistics.median(seconds)
    spread = statistics.median(abs(value - median) for value in seconds)
    return Summary(median / MICROSECOND, spread / MICROSECOND, min(seconds) / MICROSECOND)
