"""Checks and times every implementation on one problem after another."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.bounds import Ceilings, bound_seconds
from benchmarks.ceilings import measure_ceilings
from benchmarks.check import Errors, Reference, WrongResultError, compare, compute_reference, tolerance_for
from benchmarks.environment import Environment
from benchmarks.feasible import Limits, estimate_seconds, memory_lack
from benchmarks.implementations import BASELINE, FLOOR, Implementation, Layer
from benchmarks.memory import NOT_MEASURED, SOURCES, peak_bytes
from benchmarks.problem import DTYPES, SPIKE_RATE, InputSet, Problem, make_problem
from benchmarks.results import Row
from benchmarks.shapes import Shape
from benchmarks.timing import Clock, Reading, clock_for, summarize

FEWEST_ROUNDS = 3
WARM_SECONDS = 0.5
MOST_PROFILED_STEPS = 8192
# What a library or an implementation raises when it cannot do what it was asked to; a defect in the suite itself
# (an attribute or key that is not there) goes through.
REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError)
# Where the errors of torch.compile are defined: what it cannot do on a device is no wrong result of ours to report.
COMPILERS = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        rounds: Timed calls of each implementation in a case, fewer where those of all would take longer than
            ``case_seconds``.
        call_limit: Seconds; an implementation is skipped where one call takes longer, and in every larger case.
        time_limit: Seconds for the whole run; what would start after it is skipped.
        done: Cases that are not run again, as (shape, dtype, input, pass).
    """

    device: torch.device
    shapes: Sequence[Shape]
    dtypes: Sequence[str]
    passes: Sequence[str]
    inputs: Sequence[str]
    implementations: Sequence[Implementation]
    tf32: bool = True
    learn_decay: bool = False
    rounds: int = 30
    case_seconds: float = 8.0
    call_limit: float = 4.0
    time_limit: float = math.inf
    done: frozenset[tuple[str, str, str, str]] = frozenset()


@dataclass
class Candidate:
    """An implementation that has been built for a problem, and what is measured of it."""

    implementation: Implementation
    layer: Layer
    errors: Errors | None = None
    peak: int | None = None
    seconds: float = 0.0  # of its second call, for the caller
    rounds: int = FEWEST_ROUNDS
    readings: list[Reading] = field(default_factory=list)
    error: str = ""


def run(
    settings: Settings, environment: Environment, advance: Callable[[str], None] = lambda case: None
) -> Iterator[list[Row]]:
    """Runs every case.

    Args:
        settings: What to run.
        environment: The columns that are the same in every row.
        advance: Called before each case with its name.

    Yields:
        The rows of one case: one for each implementation, timed, skipped, failed or refused.
    """
    deadline = time.monotonic() + settings.time_limit
    ceilings = {dtype: measure_ceilings(settings.device, dtype) for dtype in settings.dtypes}
    limits = Limits(settings.call_limit)
    for kind in settings.inputs:  # the outermost, so that a run which is cut short has every shape on one input
        for shape in settings.shapes:
            for dtype in settings.dtypes:
                for pass_ in settings.passes:
                    if (shape.name, dtype, kind, pass_) in settings.done:
                        continue
                    advance(f"{shape.name} {dtype} {kind} {pass_}")
                    case = Case(settings, environment, shape, dtype, kind, pass_, ceilings[dtype], limits, deadline)
                    if time.monotonic() > deadline:
                        yield case.rows_skipped(results.OUT_OF_TIME)
                    else:
                        yield case.run()


@dataclass(frozen=True)
class Case:
    """One shape, dtype, input and pass, for every implementation that has such a pass."""

    settings: Settings
    environment: Environment
    shape: Shape
    dtype: str
    kind: str
    pass_: str
    ceilings: Ceilings
    limits: Limits
    deadline: float = math.inf  # of time.monotonic(); nothing more is prepared after it

    @property
    def implementations(self) -> list[Implementation]:
        return [found for found in self.settings.implementations if self.pass_ in found.passes]

    def run(self) -> list[Row]:
        device = self.settings.device
        reason = memory_lack(self.shape, self.dtype, self.pass_, device)
        if reason is not None:
            return self.rows_skipped(reason)
        _forget_compiled()
        problem = make_problem(self.shape, self.dtype, self.kind, device, learn_decay=self.settings.learn_decay)
        for inputs in problem.sets:
            inputs.x.requires_grad_(self.pass_ == "training")
        try:
            expected = compute_reference(problem, problem.sets[0], training=self.pass_ == "training")
        except ValueError as error:
            return self._rows(results.FAILED, str(error))

        rows: dict[str, Row] = {}
        candidates = []
        for implementation in self.implementations:
            outcome = self._prepare(implementation, problem, expected)
            if isinstance(outcome, Row):
                rows[implementation.label] = outcome
            else:
                candidates.append(outcome)
        del expected
        self._time(candidates, problem)
        for candidate in candidates:
            rows[candidate.implementation.label] = self._row_timed(candidate, problem)
        ordered = [rows[implementation.label] for implementation in self.implementations]
        return with_ratios(ordered)

    def rows_skipped(self, reason: str) -> list[Row]:
        return self._rows(results.SKIPPED, reason)

    def _rows(self, status: str, reason: str) -> list[Row]:
        return [self._row(implementation, status, reason) for implementation in self.implementations]

    def _prepare(self, implementation: Implementation, problem: Problem, expected: Reference) -> Candidate | Row:
        """Builds an implementation, checks it and measures its memory; or the row that says why not."""
        lack = implementation.unavailable(problem.device) or implementation.unsuited(problem)
        if time.monotonic() > self.deadline:
            lack = results.OUT_OF_TIME
        if lack is not None:
            return self._row(implementation, results.SKIPPED, lack)
        try:
            reason = self._too_slow(implementation)
            if reason is not None:
                return self._row(implementation, results.SKIPPED, reason)
            candidate = Candidate(implementation, implementation.build(problem))
            self._clear(candidate.layer, problem)  # of what one that raised has left in the inputs
            # The first call also does what is done once: a kernel's module is loaded, a plan made, a pool filled.
            spikes = self._call(candidate.layer, problem.sets[0])
            if implementation.function == "same":
                candidate.errors = self._check(candidate, spikes, problem, expected)
            del spikes
            self._clear(candidate.layer, problem)
            reason = self._time_limit_passed(candidate, problem)
            if reason is not None:
                return self._row(implementation, results.SKIPPED, reason)
            self._clear(candidate.layer, problem)
            if not self._walks_too_far(implementation):
                candidate.peak = peak_bytes(lambda: self._call(candidate.layer, problem.sets[0]), problem.device)
                self._clear(candidate.layer, problem)
        except WrongResultError as error:
            return self._row(implementation, results.REFUSED, str(error))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self._row(implementation, results.SKIPPED, "out of memory")
        except REFUSALS as error:
            if type(error).__module__.startswith(COMPILERS):
                return self._row(implementation, results.SKIPPED, f"torch cannot compile it: {error}")
            return self._row(implementation, results.FAILED, f"{type(error).__name__}: {error}")
        return candidate

    def _too_slow(self, implementation: Implementation) -> str | None:
        """Whether a call would pass the limit: as one did in a smaller case, or by an estimate from a few steps."""
        case = implementation.label, self.dtype, self.pass_, self.shape
        reason = self.limits.known(*case)
        if reason is not None or not implementation.step_by_step:
            return reason
        seconds = estimate_seconds(implementation, self.shape, self.dtype, self.pass_, self.settings.device)
        reason = self.limits.check(*case, seconds)
        return None if reason is None else f"an estimated {reason}"

    def _walks_too_far(self, implementation: Implementation) -> bool:
        """On a CPU the profiler records every operation, and a walk of many steps takes it many times the walk."""
        return self.settings.device.type == "cpu" and implementation.step_by_step and self.shape.T > MOST_PROFILED_STEPS

    def _time_limit_passed(self, candidate: Candidate, problem: Problem) -> str | None:
        """Times a call, and if it passes the limit another: one may have been held up."""
        clock = clock_for(problem.device)
        candidate.seconds = math.inf
        for _ in range(2):
            if candidate.seconds > self.settings.call_limit:
                self._clear(candidate.layer, problem)
                reading = clock.time(lambda: self._call(candidate.layer, problem.sets[0]))
                candidate.seconds = min(candidate.seconds, reading.wall)
        label = candidate.implementation.label
        return self.limits.check(label, self.dtype, self.pass_, self.shape, candidate.seconds)

    def _check(self, candidate: Candidate, spikes: Tensor, problem: Problem, expected: Reference) -> Errors:
        gradients = {}
        if self.pass_ == "training":
            grad_x = problem.sets[0].x.grad
            if grad_x is None:
                raise WrongResultError("gradient of x: got none")
            gradients = {"x": grad_x, **candidate.layer.gradients()}
            required = {"weight", "bias_ih", "bias_hh", *(["decay"] if problem.learn_decay else [])}
            if missing := required - set(gradients):
                raise WrongResultError(f"gradient of {', '.join(sorted(missing))}: got none")
        tolerance = tolerance_for(
            self.dtype,
            tf32=self.settings.tf32 and problem.device.type == "cuda",
            rounds_state=candidate.implementation.rounds_state,
        )
        return compare(spikes.detach(), gradients, problem, expected, tolerance)

    def _time(self, candidates: Sequence[Candidate], problem: Problem) -> None:
        """Times the candidates in interleaved rounds (A B C, B C A, ...), each call on another input set.

        One with fewer rounds than the others takes part in some of them, spread evenly over all.
        """
        turns = itertools.cycle(problem.sets)
        clock = clock_for(problem.device)
        self._warm_up(candidates, problem, clock)
        rounds = max((candidate.rounds for candidate in candidates), default=0)
        enabled = gc.isenabled()
        gc.disable()
        try:
            for round_ in range(rounds):
                for index in range(len(candidates)):
                    candidate = candidates[(round_ + index) % len(candidates)]
                    if (round_ + 1) * candidate.rounds // rounds == round_ * candidate.rounds // rounds:
                        continue
                    self._time_one(candidate, next(turns), problem, clock)
        finally:
            if enabled:
                gc.enable()

    def _warm_up(self, candidates: Sequence[Candidate], problem: Problem, clock: Clock) -> None:
        """Calls every candidate on every input set or for a second, and gives it the rounds there is time for.

        One whose call takes half a second is warm from the calls before.
        """
        for candidate in candidates:
            seconds = candidate.seconds
            if seconds < WARM_SECONDS:
                start = time.perf_counter()
                for count, inputs in enumerate(problem.sets, start=1):
                    self._time_one(candidate, inputs, problem, clock)
                    seconds = (time.perf_counter() - start) / count
                    if seconds * count > 1.0:
                        break
            affordable = int(self.settings.case_seconds / len(candidates) / seconds)
            candidate.rounds = max(FEWEST_ROUNDS, min(self.settings.rounds, affordable))
            candidate.readings.clear()

    def _time_one(self, candidate: Candidate, inputs: InputSet, problem: Problem, clock: Clock) -> None:
        if candidate.error:
            return

        def call() -> None:
            self._call(candidate.layer, inputs)

        def prepare() -> None:
            self._clear(candidate.layer, problem)

        try:
            candidate.readings.append(clock.time(call, prepare))
        except REFUSALS as error:
            candidate.error = f"{type(error).__name__}: {error}"

    def _call(self, layer: Layer, inputs: InputSet) -> Tensor:
        if self.pass_ == "forward":
            with torch.no_grad():
                output: Tensor = layer(inputs.x)
            return output
        output = layer(inputs.x)
        torch.autograd.backward(output, inputs.grad_spikes)
        return output

    def _clear(self, layer: Layer, problem: Problem) -> None:
        """Forgets gradients, so that none is added to: a training step starts from none."""
        layer.zero_grad(set_to_none=True)
        for inputs in problem.sets:
            inputs.x.grad = None

    def _row_timed(self, candidate: Candidate, problem: Problem) -> Row:
        implementation = candidate.implementation
        if candidate.error:
            return self._row(implementation, results.FAILED, candidate.error)
        try:
            device = summarize([reading.device for reading in candidate.readings])
            wall = summarize([reading.wall for reading in candidate.readings])
        except ValueError as error:
            return self._row(implementation, results.FAILED, str(error))
        kernels = implementation.kernels(self.shape, self.pass_)
        bound = bound_seconds(kernels, DTYPES[self.dtype].itemsize, self.ceilings) * 1e6
        return dataclasses.replace(
            self._row(implementation, results.OK, implementation.note(problem)),
            rounds=len(candidate.readings),
            median_us=device.median,
            spread_us=device.spread,
            least_us=device.least,
            wall_us=wall.median,
            peak_bytes=candidate.peak,
            peak_source=NOT_MEASURED if candidate.peak is None else SOURCES[problem.device.type],
            spike_mismatch=candidate.errors.spikes if candidate.errors else None,
            gradient_error=candidate.errors.gradient if candidate.errors else None,
            bound_us=bound,
            share_of_bound=bound / device.median,
        )

    def _row(self, implementation: Implementation, status: str, note: str) -> Row:
        on_cuda_in_float32 = self.environment.device_type == "cuda" and self.dtype == "float32"
        return Row(
            **vars(self.environment),
            tf32=("on" if self.settings.tf32 else "off") if on_cuda_in_float32 else "n/a",
            dtype=self.dtype,
            shape=self.shape.name,
            T=self.shape.T,
            N=self.shape.N,
            C=self.shape.C,
            H=self.shape.H,
            pass_=self.pass_,
            input=self.kind,
            spike_rate=SPIKE_RATE if self.kind == "spikes" else None,
            implementation=implementation.name,
            plan=implementation.plan,
            function=implementation.function,
            status=status,
            copy_bandwidth=self.ceilings.copy,
            matrix_rate=self.ceilings.matrix,
            note=" ".join(note.split()),
        )


def _forget_compiled() -> None:
    """Lets a compiled rival start each case anew: dynamo gives up on a function after a few shapes."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Adds the ratios to nn.RNN and nn.Linear, where these were timed in the same rounds."""
    median = {row.implementation: row.median_us for row in rows}
    rnn, linear = median.get(BASELINE), median.get(FLOOR)
    return [
        row
        if row.median_us is None
        else dataclasses.replace(
            row,
            speedup_over_rnn=None if rnn is None else rnn / row.median_us,
            time_over_linear=None if linear is None else row.median_us / linear,
        )
        for row in rows
    ]
