"""Plans that are measured where they run, and remembered.

`tune` and `tune_layer` time the candidates of `csrc/plan/measured.h` in turns on one device. The best of each direction
is what calls with `plan=None` of such sizes run from then on: in this process, and by a file in later ones. ::

    LEAKYPAR_TUNING=path     the file; "off" reads and writes none. By default it is tuning.json in the user's cache
                             folder, where the package platformdirs is installed, and none elsewhere
    LEAKYPAR_AUTOTUNE=1      as leakypar.autotune = True: sizes that were not measured are, at their first call

Plans of one layer may differ in the last bits. Given the file, a result is as repeatable as without it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import launch_plan, ops, surrogate
from .autograd import is_plain
from .build_info import extension
from .call_checks import check_call
from .measuring import DTYPES, Contestant, HostClock, Shape, clock_for, make_problem, race, summarize
from .torch_state import is_tracing
from .tuning_file import Candidate, remember, write

if TYPE_CHECKING:
    from .module import LeakyParallel

__all__ = ["SWITCH_VARIABLE", "Candidate", "Tuned", "tune", "tune_layer"]

SWITCH_VARIABLE = "LEAKYPAR_AUTOTUNE"
FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
LEAST_GAIN = 1.03  # by less, the model's choice is kept: two medians of one plan differ as much
FIRST_CALL_SECONDS = 0.3


class Tuned(NamedTuple):
    """What was found.

    Attributes:
        plan: the best of each direction; the model's where another gains less than 3%, or nothing was measured.
        candidates: all that were timed, the best of each direction first. `print` shows a table, and so does rich's.
    """

    plan: launch_plan.Plan
    candidates: tuple[Candidate, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """The table's cells, its head first."""
        found: list[tuple[str, ...]] = [("direction", "method", "chunk", "tiles", "µs", "gain", "")]
        for each in self.candidates:
            tiles = "" if each.tiles is None else " ".join(str(int(value)) for value in each.tiles)
            times = (f"{each.microseconds:.1f}", f"{each.gain:.3f}", "model's choice" if each.is_model else "")
            found.append((each.direction, each.method, str(each.chunk), tiles, *times))
        return found

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows(), strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows())
        return "\n".join(lines)

    def __rich__(self) -> Any:
        from rich.table import Table

        head, *rows = self.rows()
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        return table


def tune(
    T: int,
    N: int,
    C: int,
    H: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
    training: bool = True,
    seconds: float = 1.0,
    clock: HostClock | None = None,
) -> Tuned:
    """Measures the plans of a layer's sizes on a device, on spikes at a rate of 0.2, and remembers the best.

    Args:
        T: time steps, at least 1, like the three that follow.
        N: batch.
        C: input features.
        H: neurons.
        dtype: compute dtype: float32, float64, float16 or bfloat16.
        device: where it runs.
        training: whether to measure the backward too, and the forward that keeps what that needs.
        seconds: for each direction, about.
        clock: takes the times; by default of the device.

    Raises:
        TypeError: a size or `dtype` is not of a type above.
        ValueError: a size is below 1, or `seconds` not positive.
        RuntimeError: the kernels were not built for the device.
    """
    target = torch.device(device)
    if not ops.is_available(target.type) or target.type == "meta":
        raise RuntimeError(ops.unavailable_reason(target.type))
    launch_plan.plan(T, N, C, H, dtype=dtype, device=target)  # which checks the types
    for name, size in (("T", T), ("N", N), ("C", C), ("H", H)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1 to be measured, got {size}")
    name = next(name for name, each in DTYPES.items() if each == dtype)
    problem = make_problem(Shape("tuned", T, N, C, H), name, "spikes", target)
    weight, bias_ih, bias_hh, decay = problem.parameters
    ones = weight.new_ones(())
    copies = [each.x for each in problem.sets]
    inputs = ops.Inputs(copies[0], weight, decay, bias_ih, bias_hh, ones, ones, None)
    return _measure(inputs, copies, training, seconds, clock)


def tune_layer(layer: LeakyParallel, x: Tensor, *, seconds: float = 1.0, clock: HostClock | None = None) -> Tuned:
    """Measures the plans of a layer on an input like those that it will see, and remembers the best.

    Args:
        layer: a layer that runs the fused kernels; in training mode the backward is measured too.
        x: `[T, N, C]`, in the layer's dtype and on its device.
        seconds: as in `tune`.
        clock: as in `tune`.

    Raises:
        TypeError: `layer` is not a `LeakyParallel`.
        ValueError: `x` does not fit the layer, or is empty; or its recurrent matrix is dense.
        RuntimeError: the kernels were not built for the device.
    """
    from .module import LeakyParallel

    if not isinstance(layer, LeakyParallel):
        raise TypeError(f"layer must be a LeakyParallel, got {type(layer).__name__}")
    if layer.weight_hh_enable:
        raise ValueError("layer must not have weight_hh_enable=True: a dense recurrent matrix has no plan")
    weight, recurrent, bias_ih, bias_hh = layer.rnn()
    decay = recurrent if recurrent.dim() == 1 else recurrent.diagonal()
    dtype = check_call(x, weight, decay, bias_ih, bias_hh, layer.threshold, layer.graded_spikes_factor, None)
    if not ops.is_available(x.device.type) or x.is_meta:
        raise RuntimeError(ops.unavailable_reason(x.device.type))
    if x.dim() == 2:
        x = x.unsqueeze(1)
    if not x.shape[0] or not x.shape[1]:
        raise ValueError(f"x must not be empty to be measured, got {tuple(x.shape)}")
    x, weight = x.to(dtype), weight.to(dtype)
    inputs = ops.Inputs(x, weight, decay, bias_ih, bias_hh, layer.threshold, layer.graded_spikes_factor, None)
    return _measure(inputs, [x], layer.training, seconds, clock)


@torch.no_grad()
def _measure(
    inputs: ops.Inputs, copies: list[Tensor], training: bool, seconds: float, clock: HostClock | None
) -> Tuned:
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    sizes, facts = _sizes(inputs.x, inputs.weight), launch_plan.facts_of(inputs.x.device)
    model = launch_plan.Plan(*extension().make_plan(**sizes, facts=facts, measured=False))
    taken = ops.SPIKES | (ops.MEMBRANE if training else 0)
    clock = clock or clock_for(inputs.x.device)
    settings = ops.Settings(surrogate=surrogate.kernel_of(surrogate.atan()))

    def forward(request: launch_plan.Request, index: int) -> Any:
        return ops.forward(inputs._replace(x=copies[index]), settings._replace(request=request), taken)

    kept = [forward(launch_plan.AUTOMATIC, index)[1] for index in range(len(copies) if training else 0)]

    def backward(request: launch_plan.Request, index: int) -> Any:
        # The gradient of the spikes may be any: the membrane is one that is there.
        incoming = ops.Incoming(kept[index], None, None, kept[index], None)
        return ops.backward(incoming, inputs._replace(x=copies[index]), settings._replace(request=request), 0b1111)

    timed: list[list[Candidate]] = []
    directions: dict[str, Callable[[launch_plan.Request, int], Any]] = {"forward": forward}
    if training:
        directions["backward"] = backward
    for direction, call in directions.items():
        timed.append(_timed(direction, call, sizes, facts, model, len(copies), seconds, clock))
    best = [candidates[0] for candidates in timed]
    write(best, sizes, facts, inputs.x.device)
    for each in best:
        remember(each, sizes, facts)
    plan = launch_plan.Plan(*extension().make_plan(**sizes, facts=facts))
    return Tuned(launch_plan.with_tiles(plan), tuple(each for candidates in timed for each in candidates))


def _sizes(x: Tensor, weight: Tensor) -> dict[str, Any]:
    T, N, C = x.shape
    precision = "tf32" if ops.allow_tf32(x) else str(x.dtype).removeprefix("torch.")
    return {"T": T, "N": N, "C": C, "H": weight.shape[0], "precision": precision}


def _timed(
    direction: str,
    call: Callable[[launch_plan.Request, int], Any],
    sizes: Mapping[str, Any],
    facts: Any,
    model: launch_plan.Plan,
    inputs: int,
    seconds: float,
    clock: HostClock,
) -> list[Candidate]:
    """The candidates of one direction, the one to run first."""
    is_forward = direction == "forward"
    of_model: Any = (model.forward, model.gemm_chunk) if is_forward else (model.backward, model.backward_gemm_chunk)
    found: dict[str, Candidate] = {}
    contestants: dict[str, Contestant] = {}
    listed: Any = extension().candidates(**sizes, facts=facts, direction=direction)
    for method, chunk_bytes, chunk, tiles in listed:
        shaped = None if tiles is None else launch_plan.Tiles(*tiles)
        request = launch_plan.Request(backward=method, backward_gemm_chunk=chunk)
        if is_forward:
            request = launch_plan.Request(method, gemm_chunk=chunk, tiles=tiles and tuple(map(int, tiles)))
        is_model = (method, chunk) == of_model and (not is_forward or tiles == model.tiles)
        name = str(len(found))
        found[name] = Candidate(direction, method, chunk, chunk_bytes, shaped, math.nan, math.nan, is_model)
        contestants[name] = Contestant(partial(call, request), lambda: None)
    readings, errors = race(contestants, clock, inputs, seconds=seconds, fewest=FEWEST_ROUNDS, most=MOST_ROUNDS)
    chosen = next(name for name, each in found.items() if each.is_model)
    if chosen in errors:
        raise RuntimeError(f"the plan that the model chooses could not run: {errors[chosen]}")
    for name, times in readings.items():
        common = readings[chosen].keys() & times.keys()
        if name not in errors and common:
            over, taken = ([each[index].device for index in common] for each in (readings[chosen], times))
            gains = (summarize([a / b for a, b in zip(over, taken, strict=True)]).median, min(over) / min(taken))
            median = summarize([each.device for each in times.values()]).median
            found[name] = found[name]._replace(microseconds=1e6 * median, gain=min(gains))

    def worth(each: Candidate) -> float:
        if math.isnan(each.gain):
            return 0.0
        return each.gain if each.is_model or each.gain >= LEAST_GAIN else each.gain / 2

    return sorted(found.values(), key=worth, reverse=True)


def switched_on_by_environment() -> bool:
    """Whether `LEAKYPAR_AUTOTUNE` asks for it: 1 or 0, and unset is 0.

    Raises:
        ValueError: it is something else.
    """
    value = os.environ.get(SWITCH_VARIABLE) or "0"
    if value not in ("0", "1"):
        raise ValueError(f"{SWITCH_VARIABLE} must be 0 or 1, got {value!r}")
    return value == "1"


_forked = False
_seen: set[tuple[Any, ...]] = set()


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def at_first_call(inputs: ops.Inputs) -> None:
    """Measures a call's plans, if no such sizes were before, and this is a call that may take the time."""
    x, weight = inputs.x, inputs.weight
    if not x.numel() or type(x) is not Tensor or not is_plain() or is_tracing():
        return
    why_not = _why_not(x)
    if why_not:
        _keep_the_models(why_not)
        return
    training = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)
    octaves = (x.shape[0].bit_length(), x.shape[1].bit_length())
    key = (x.device, ops.allow_tf32(x), x.dtype, *octaves, x.shape[2], weight.shape[0], training)
    if key in _seen:
        return
    _seen.add(key)
    sizes, facts = _sizes(x, weight), launch_plan.facts_of(x.device)
    directions: Any = ("forward", "backward") if training else ("forward",)
    if all(extension().is_measured(**sizes, facts=facts, direction=each) for each in directions):
        return
    try:
        _measure(inputs, [x.detach()], training, FIRST_CALL_SECONDS, None)
    except torch.OutOfMemoryError:
        _keep_the_models("where the device's memory does not hold a second call")


def _why_not(x: Tensor) -> str:
    if torch.are_deterministic_algorithms_enabled():
        return "under torch.use_deterministic_algorithms(True), since plans may differ in the last bits"
    if _forked:
        return "in a forked process"
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return "while a CUDA graph is captured"
    return ""


@cache
def _keep_the_models(why: str) -> None:
    warnings.warn(f"leakypar: nothing is measured {why}: plans are those that were chosen before", stacklevel=2)
