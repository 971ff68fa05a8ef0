"""What the fused kernels buy on this machine, in under a minute: ``python -m leakypar.benchmark``.

Times a layer on the fused kernels beside one on `nn.RNN` and beside `nn.Linear` alone, the floor that a user pays
already: in one process, in turns, so that what disturbs one disturbs all; medians of the times, and of the rounds'
ratios. The two layers must agree before they are timed. ``--help`` lists the choices; ``--csv`` keeps the rows.

The repository's ``benchmarks/`` measures every rival, on a GPU too, with what is here: shapes, inputs, turns, medians.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import ops
from .module import LeakyParallel
from .version import __version__


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
ONE_SEQUENCE = Shape("one-sequence", 1000, 1, 128, 256)
"""So small that on a CPU the call itself is a part of its time."""

QUICK = ("tutorial", "long", "streaming", "onm")
PASSES = ("forward", "training")
INPUTS = ("spikes", "dense")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
SPIKE_RATE = 0.2
THRESHOLD = 1.0
# Input sets are rotated. Together they are larger than the last cache of most machines, so that no call finds its input
# there because the call before it used the same.
ROTATED_BYTES = 64 << 20
MOST_SETS = 8
FLOOR, RNN, FUSED = "nn.Linear", "leakypar rnn", "leakypar fused"
FEWEST_ROUNDS, MOST_ROUNDS = 5, 1000
MOST_MISMATCH = 1e-2
"""Share of spikes in which two implementations may differ by rounding, in bfloat16; a wrong one differs in more."""


def draw_input(shape: Shape, kind: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draws an input `[T, N, C]` on the generator's device.

    Args:
        shape: The sizes.
        kind: `"spikes"`: ones at a rate of :data:`SPIKE_RATE`, else zeros. `"dense"`: standard normal values.
        dtype: Of the result.
        generator: Of the values.

    Raises:
        ValueError: If `kind` is neither.
    """
    size = (shape.T, shape.N, shape.C)
    if kind == "dense":
        return torch.randn(size, generator=generator, device=generator.device).to(dtype)
    if kind != "spikes":
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(INPUTS)}")
    return (torch.rand(size, generator=generator, device=generator.device) < SPIKE_RATE).to(dtype)


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
        kind: `"spikes"` or `"dense"`, as of :func:`draw_input`.
        device: Where the tensors live.
        learn_decay: Whether the training step also computes the decay's gradient.
        sets: How many input sets; :func:`set_count` when None.

    Raises:
        ValueError: If `kind` is neither.
    """
    generator, target = torch.Generator(device).manual_seed(0), DTYPES[dtype]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    second_moment = SPIKE_RATE if kind == "spikes" else 1.0
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


def figures(readings: Mapping[str, Mapping[int, Reading]], name: str, baseline: str, floor: str) -> dict[str, Any]:
    """What a row says of one contestant's readings, in the columns of a CSV; times are microseconds.

    A ratio is the median over the rounds that both took part in: neighbours in time, so of one disturbance.

    Raises:
        ValueError: As :func:`summarize`.
    """

    def ratio(over: str, under: str) -> Summary | None:
        over_times, under_times = readings.get(over, {}), readings.get(under, {})
        common = [over_times[index].device / under_times[index].device for index in over_times if index in under_times]
        return summarize(common) if common else None

    mine = readings[name].values()
    device, wall = summarize([each.device for each in mine]), summarize([each.wall for each in mine])
    over_rnn, over_linear = ratio(baseline, name), ratio(name, floor)
    return {
        "rounds": len(mine),
        "median_us": 1e6 * device.median,
        "spread_us": 1e6 * device.spread,
        "least_us": 1e6 * device.least,
        "wall_us": 1e6 * wall.median,
        "speedup_over_rnn": over_rnn and over_rnn.median,
        "time_over_linear": over_linear and over_linear.median,
        "time_over_linear_spread": over_linear and over_linear.spread,
    }


def step(layer: nn.Module, inputs: InputSet, pass_: str) -> Tensor:
    """A forward pass, or forward and backward to the input and every parameter; returns the layer's output."""
    if pass_ == "forward":
        with torch.no_grad():
            output: Tensor = layer(inputs.x)
        return output
    output = layer(inputs.x)
    torch.autograd.backward(output, inputs.grad_spikes)
    return output


def contestant(layer: nn.Module, sets: Sequence[InputSet], pass_: str) -> Contestant:
    """A layer that is stepped, and forgets its gradients before, so that none is added to."""

    def forget() -> None:
        layer.zero_grad(set_to_none=True)
        for inputs in sets:
            inputs.x.grad = None

    return Contestant(lambda index: step(layer, sets[index], pass_), forget)


def layers(problem: Problem) -> dict[str, nn.Module]:
    """The three that are timed, with the problem's parameters."""
    (weight, bias_ih, bias_hh, decay), (C, H) = problem.parameters, (problem.shape.C, problem.shape.H)
    to: dict[str, Any] = {"device": problem.device, "dtype": weight.dtype}
    made: dict[str, nn.Module] = {FLOOR: nn.Linear(C, H, **to)}
    made[FLOOR].load_state_dict({"weight": weight, "bias": bias_ih})
    for name in (RNN, FUSED):
        layer = LeakyParallel(C, H, beta=decay.float(), threshold=THRESHOLD, backend=backend_of(name), **to)
        state = {"rnn.weight_ih_l0": weight, "rnn.bias_ih_l0": bias_ih, "rnn.bias_hh_l0": bias_hh}
        layer.load_state_dict(layer.state_dict() | state)
        made[name] = layer
    return made


def backend_of(name: str) -> str:
    """That of a contestant that is ours."""
    return "fused" if name == FUSED else "rnn"


def measure(
    shape: Shape, dtype: str, pass_: str, kind: str, threads: int, seconds: float, device: torch.device
) -> list[dict[str, Any]]:
    """Times one case for about so long, and for five rounds at least.

    Returns:
        A row for each contestant, with the columns of :func:`figures` and those that say what was timed.

    Raises:
        ValueError: If the two backends' spikes differ in more than rounding explains, or one raised an error.
    """
    torch.set_num_threads(threads)
    problem = make_problem(shape, dtype, kind, device)
    timed = layers(problem)
    spikes = [step(timed[name], problem.sets[0], "forward") for name in (FUSED, RNN)]
    if (share := (spikes[0] != spikes[1]).double().mean().item()) > MOST_MISMATCH:
        raise ValueError(f"spikes: {share:.1%} differ between fused and rnn, expected at most {MOST_MISMATCH:.0%}")
    for inputs in problem.sets:
        inputs.x.requires_grad_(pass_ == "training")
    readings, errors = race(
        {name: contestant(layer, problem.sets, pass_) for name, layer in timed.items()},
        clock_for(device),
        len(problem.sets),
        seconds=seconds,
        fewest=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )
    if errors:
        raise ValueError("; ".join(f"{name}: {error}" for name, error in errors.items()))
    case = {"dtype": dtype, "pass": pass_, "input": kind, "threads": threads, "device_type": device.type}
    return [
        {
            "torch": torch.__version__,
            "leakypar": __version__,
            "shape": shape.name,
            **{size: getattr(shape, size) for size in "TNCH"},
            **case,
            "implementation": name,
            "backend": "" if name == FLOOR else backend_of(name),
            **figures(readings, name, RNN, FLOOR),
        }
        for name in timed
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows of one case as a line."""
    linear, rnn, fused = ({**row, "ms": row["median_us"] / 1e3} for row in rows)
    print(
        f"{fused['shape']:13} {fused['dtype']:9} {fused['input']:6} {fused['pass']:9} {fused['threads']:2} threads"
        f" {linear['ms']:12.2f} {rnn['ms']:14.2f} {fused['ms']:15.2f}"
        f" {fused['time_over_linear']:11.2f} ± {fused['time_over_linear_spread']:.2f}"
        f" {fused['speedup_over_rnn']:13.1f}",
        flush=True,
    )


def show_means(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what the fused rows say together, for each pass."""
    for pass_ in dict.fromkeys(row["pass"] for row in rows):
        fused = [row for row in rows if row["pass"] == pass_ and row["implementation"] == FUSED]
        over_linear, over_rnn = ([row[name] for row in fused] for name in ("time_over_linear", "speedup_over_rnn"))
        print(
            f"{pass_}: fused over nn.Linear {statistics.geometric_mean(over_linear):.2f} (geometric mean), "
            f"{max(over_linear):.2f} at most; rnn over fused {min(over_rnn):.1f} to {max(over_rnn):.1f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    known_shapes = {**SHAPES, ONE_SEQUENCE.name: ONE_SEQUENCE}
    parser = argparse.ArgumentParser(prog="python -m leakypar.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", default=",".join(QUICK), help=f"of {', '.join(known_shapes)}; or all")
    parser.add_argument("--dtypes", default="float32", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--passes", default=",".join(PASSES))
    parser.add_argument("--inputs", default="spikes", help=f"of {', '.join(INPUTS)}")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="such as 1,2")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case, about")
    parser.add_argument("--csv", type=Path, help="a file to write the rows to")
    options = parser.parse_args(arguments)
    shapes = list(known_shapes) if options.shapes == "all" else options.shapes.split(",")
    dtypes, passes, inputs = options.dtypes.split(","), options.passes.split(","), options.inputs.split(",")
    for name, chosen, known in (
        ("--shapes", shapes, known_shapes),
        ("--dtypes", dtypes, DTYPES),
        ("--passes", passes, PASSES),
        ("--inputs", inputs, INPUTS),
    ):
        for value in chosen:
            if value not in known:
                parser.error(f"{name}: expected some of {', '.join(known)}, got {value!r}")
    if not ops.is_available(options.device):
        print(f"There are no fused kernels to measure: {ops.unavailable_reason(options.device)}", file=sys.stderr)
        return 1
    print(f'{"":44} milliseconds: nn.Linear, backend="rnn", backend="fused"; fused/nn.Linear, rnn/fused')
    rows = []
    for shape, dtype, pass_, kind, threads in product(shapes, dtypes, passes, inputs, options.threads.split(",")):
        case = measure(
            known_shapes[shape], dtype, pass_, kind, int(threads), options.seconds, torch.device(options.device)
        )
        show(case)
        rows += case
    show_means(rows)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
