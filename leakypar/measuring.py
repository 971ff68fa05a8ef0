"""The measuring core: problems that keep neurons busy, and calls timed in turns, by medians.

What disturbs a machine then disturbs all that is compared. The command `leakypar.benchmark`, `leakypar.tune` and the
repository's `benchmarks/` measure with it, on a CPU and on a GPU.
"""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One problem: `T` time steps, `N` batch rows, `C` input features, `H` neurons."""

    name: str
    T: int
    N: int
    C: int
    H: int

    @property
    def rows(self) -> int:
        """`T * N`: rows of the projection's matrix product."""
        return self.T * self.N

    def __str__(self) -> str:
        return f"{self.name} ({self.T}, {self.N}, {self.C}, {self.H})"


DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
SPIKES = 0.2  # the rate of an input named "spikes"
THRESHOLD = 1.0
# Input sets are rotated. Together they are larger than the last cache of most machines, so that no call finds its input
# there because the call before it used the same.
ROTATED_BYTES = 64 << 20
MOST_SETS = 8


def rate_of(kind: str) -> float | None:
    """The share of ones in an input of zeros and ones: `"spikes"` are 20%, and `"5%"` says it; None for `"dense"`.

    Raises:
        ValueError: If `kind` is none of these.
    """
    named = {"spikes": SPIKES, "dense": None}
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", kind)
    if kind in named:
        return named[kind]
    if percent and 0 < float(percent[1]) <= 100:
        return float(percent[1]) / 100
    raise ValueError(f"input: got {kind!r}, expected spikes, dense or a rate such as 5%")


def draw_input(shape: Shape, kind: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draws an input `[T, N, C]` on the generator's device.

    Args:
        shape: The sizes.
        kind: `"dense"`: standard normal values. Else ones at the rate that :func:`rate_of` reads, and zeros.
        dtype: Of the result.
        generator: Of the values.

    Raises:
        ValueError: If `kind` is none of these.
    """
    size, rate = (shape.T, shape.N, shape.C), rate_of(kind)
    if rate is None:
        return torch.randn(size, generator=generator, device=generator.device).to(dtype)
    return (torch.rand(size, generator=generator, device=generator.device) < rate).to(dtype)


class Parameters(NamedTuple):
    """The layer's parameters in the dtype that is timed."""

    weight: Tensor  # [H, C]
    bias_ih: Tensor  # [H]
    bias_hh: Tensor  # [H]
    decay: Tensor  # [H], the diagonal of weight_hh


class InputSet(NamedTuple):
    """One input and the gradient that is sent back for it."""

    x: Tensor  # [T, N, C]
    grad_spikes: Tensor  # [T, N, H]


class Problem(NamedTuple):
    """A shape with its parameters, and the inputs that are rotated from call to call."""

    shape: Shape
    dtype: str
    device: torch.device
    parameters: Parameters
    sets: tuple[InputSet, ...]
    learn_decay: bool


def set_count(shape: Shape, dtype: str) -> int:
    """How many input sets are rotated for this shape."""
    return max(2, min(MOST_SETS, -(-ROTATED_BYTES // set_bytes(shape, dtype))))


def set_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of one input set."""
    return shape.rows * (shape.C + shape.H) * DTYPES[dtype].itemsize


def make_problem(
    shape: Shape, dtype: str, kind: str, device: torch.device, *, learn_decay: bool = False, sets: int | None = None
) -> Problem:
    """Draws a problem whose neurons neither fall silent nor fire at every step, at any shape.

    The weights are scaled by the inputs' second moment, so that the input current of a step has a standard deviation of
    0.5 whatever `C` is, against a threshold of 1 and decays between 0.5 and 0.95.

    Args:
        shape: The sizes.
        dtype: A name of :data:`DTYPES`.
        kind: `"spikes"`, `"dense"` or a rate, as of :func:`rate_of`.
        device: Where the tensors live.
        learn_decay: Whether the training step also computes the decay's gradient.
        sets: How many input sets; :func:`set_count` when None.

    Raises:
        ValueError: If `kind` is none of these.
    """
    generator, target = torch.Generator(device).manual_seed(0), DTYPES[dtype]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    second_moment = rate_of(kind) or 1.0
    uniform = torch.rand(shape.H, generator=generator, device=device)
    parameters = Parameters(
        weight=(normal(shape.H, shape.C) * 0.5 / (shape.C * second_moment) ** 0.5).to(target),
        bias_ih=(0.1 * normal(shape.H)).to(target),
        bias_hh=(0.1 * normal(shape.H)).to(target),
        decay=(0.5 + 0.45 * uniform).to(target),
    )
    drawn = tuple(
        InputSet(draw_input(shape, kind, target, generator), normal(shape.T, shape.N, shape.H).to(target))
        for _ in range(sets or set_count(shape, dtype))
    )
    return Problem(shape, dtype, device, parameters, drawn, learn_decay)


def turns(rounds: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Whose turn it is, as `(round, name)`: interleaved, in another order each round.

    The first of a round changes from one to the next, and the direction after each cycle, so that of three each comes
    after each other equally often, with what that one left in the caches. A contestant with fewer rounds than the
    others takes part in some of them, spread evenly over all.
    """
    names, most = list(rounds), max(rounds.values(), default=0)
    for index in range(most):
        first, cycle = index % len(names), index // len(names)
        order = names[first:] + names[:first]
        for name in reversed(order) if cycle % 2 else order:
            if (index + 1) * rounds[name] // most > index * rounds[name] // most:
                yield index, name


class Reading(NamedTuple):
    """One call's time in seconds: on the device, and for the caller, who waits for it to end."""

    device: float
    wall: float


class HostClock:
    """Times one call at a time on a CPU, where a call has ended when it returns."""

    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Reading:
        """Times `call`, right after `prepare`, which is not timed. A GPU's clock runs the two twice."""
        prepare()
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        return Reading(elapsed, elapsed)


class CudaClock(HostClock):
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
        """Times `call` twice: for the caller, and by events."""
        prepare()
        self._flush.zero_()
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        torch.cuda.synchronize(self._device)
        wall = time.perf_counter() - start

        prepare()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._flush.zero_()
        spin = min(2 * queued + 20e-6, self.longest_spin)
        torch.cuda._sleep(int(spin * self.spin_cycles_per_second))  # type: ignore[no-untyped-call]
        events[0].record()
        call()
        events[1].record()
        torch.cuda.synchronize(self._device)
        return Reading(events[0].elapsed_time(events[1]) * 1e-3, wall)


def clock_for(device: torch.device) -> HostClock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


class Contestant(NamedTuple):
    """What is timed: a call on the input of that number, and what is done before each call, untimed."""

    call: Callable[[int], object]
    prepare: Callable[[], object]


def race(
    contestants: Mapping[str, Contestant], clock: HostClock, inputs: int, *, seconds: float, fewest: int, most: int
) -> tuple[dict[str, dict[int, Reading]], dict[str, str]]:
    """Times contestants in turns, each call on another input, after a warm-up on every input or for a second.

    Args:
        contestants: By name.
        clock: Takes the times.
        inputs: How many inputs there are.
        seconds: For all of them, about.
        fewest: Rounds that a slow contestant takes part in.
        most: Rounds of a fast one.

    Returns:
        The readings of each, by round; and of those that raised an error, what it said.
    """
    readings: dict[str, dict[int, Reading]] = {name: {} for name in contestants}
    errors: dict[str, str] = {}

    def read(name: str, index: int) -> Reading | None:
        if name in errors:
            return None
        try:
            return clock.time(partial(contestants[name].call, index % inputs), contestants[name].prepare)
        except (RuntimeError, ValueError, TypeError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
            return None

    rounds = {}
    for name in contestants:
        began, index, spent = time.perf_counter(), 0, 0.0
        while index < inputs and spent < 1.0:
            read(name, index)
            index, spent = index + 1, time.perf_counter() - began
        rounds[name] = max(fewest, min(most, int(seconds / len(contestants) * index / spent)))
    enabled = gc.isenabled()
    gc.disable()  # a collection would fall into one contestant's time
    try:
        for index, (round_, name) in enumerate(turns(rounds)):
            if (reading := read(name, index)) is not None:
                readings[name][round_] = reading
    finally:
        if enabled:
            gc.enable()
    return readings, errors


class Summary(NamedTuple):
    """The median, the median absolute deviation from it, and the least."""

    median: float
    spread: float
    least: float


def summarize(values: Sequence[float]) -> Summary:
    """The median and spread of times, or of ratios of times, in their own unit.

    Raises:
        ValueError: If there is none, or one is not a finite positive number: no call takes no time.
    """
    if not values:
        raise ValueError("times: got none")
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"times: got {value} s, expected finite and positive ones")
    median = statistics.median(values)
    return Summary(median, statistics.median(abs(value - median) for value in values), min(values))
