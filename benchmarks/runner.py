"""Checks and times every implementation on one problem after another."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pickle import PicklingError

import torch

from benchmarks import memory, results
from benchmarks.bounds import Ceilings, bound_seconds, measure_ceilings
from benchmarks.check import Reference, WrongResultError, compare, compute_reference, tolerance_for
from benchmarks.environment import Environment
from benchmarks.implementations import BASELINE, FLOOR, Implementation, Layer
from benchmarks.results import Row
from leakypar.benchmark import contestant, figures, step
from leakypar.measuring import DTYPES, Problem, Shape, clock_for, make_problem, race, rate_of

FEWEST_ROUNDS = 3
# A probe's share of all steps, and the fewest: what a call takes once is then little beside what its steps take.
PROBED_SHARE, FEWEST_PROBED_STEPS, PROBES = 1 / 32, 16, 3
# What a library or an implementation raises when it cannot do what it was asked to; a defect in the suite itself
# (an attribute or key that is not there) goes through.
REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError)
# Where the errors of torch.compile are defined: what it cannot do on a device is no wrong result of ours to report.
COMPILERS = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True)
class Settings:
    """What to run: every shape, dtype, pass, input and number of threads, but for the cases that are ``done``.

    ``rounds`` are fewer where those of all would take longer than ``case_seconds``. An implementation is skipped where
    one call takes longer than ``call_limit`` seconds; nothing starts after ``time_limit``.
    """

    device: torch.device
    shapes: Sequence[Shape]
    dtypes: Sequence[str]
    passes: Sequence[str]
    inputs: Sequence[str]
    threads: Sequence[int]
    implementations: Sequence[Implementation]
    tf32: bool = True
    learn_decay: bool = False
    rounds: int = 30
    case_seconds: float = 8.0
    call_limit: float = 4.0
    time_limit: float = math.inf
    peak: bool = True
    done: frozenset[tuple[str, ...]] = frozenset()


@dataclass(frozen=True)
class Case:
    """One shape, dtype, input, pass and number of threads, for every implementation that has such a pass."""

    settings: Settings
    environment: Environment
    shape: Shape
    dtype: str
    kind: str
    pass_: str
    threads: int
    ceilings: Ceilings
    deadline: float = math.inf  # of time.monotonic(); nothing more is prepared after it
    peaks: dict[tuple[str, ...], tuple[int | None, str]] = field(default_factory=dict)  # shared by cases
    references: dict[tuple[str, ...], Reference] = field(default_factory=dict)  # likewise; it holds the latest

    @property
    def implementations(self) -> list[Implementation]:
        return [found for found in self.settings.implementations if self.pass_ in found.passes]

    def run(self) -> list[Row]:
        device = self.settings.device
        torch.set_num_threads(self.threads)
        if reason := memory.lack(self.shape, self.dtype, self.pass_, device):
            return self.rows(results.SKIPPED, reason)
        if "torch._dynamo" in sys.modules:  # which gives up on a function after a few shapes
            torch.compiler.reset()
        problem = make_problem(self.shape, self.dtype, self.kind, device, learn_decay=self.settings.learn_decay)
        for inputs in problem.sets:
            inputs.x.requires_grad_(self.pass_ == "training")
        try:
            expected = self._reference(problem)
        except ValueError as error:
            return self.rows(results.FAILED, str(error))
        prepared = {found: self._prepare(found, problem, expected) for found in self.implementations}
        layers = {found: layer for found, (layer, _) in prepared.items() if layer}
        del expected
        readings, failed = race(
            {found.label: contestant(layer, problem.sets, self.pass_) for found, layer in layers.items()},
            clock_for(device),
            len(problem.sets),
            seconds=self.settings.case_seconds,
            fewest=FEWEST_ROUNDS,
            most=self.settings.rounds,
        )
        for label in failed:
            del readings[label]
        for found in layers:
            row = prepared[found][1]
            try:
                if found.label in failed:
                    raise ValueError(failed[found.label])
                row |= figures(readings, found.label, BASELINE, FLOOR)
            except ValueError as error:
                row |= {"status": results.FAILED, "note": str(error)}
                continue
            kernels = found.kernels(self.shape, self.pass_)
            bound = 1e6 * bound_seconds(kernels, DTYPES[self.dtype].itemsize, self.ceilings)
            row |= {"bound_us": bound, "share_of_bound": bound / row["median_us"]}
        return [row for _, row in prepared.values()]

    def _reference(self, problem: Problem) -> Reference:
        """The judge of both passes and any number of threads: a loop over time, which is slow where that is long."""
        key = (self.shape.name, self.dtype, self.kind)
        if key not in self.references:
            self.references.clear()
            training = set(self.settings.passes) != {"forward"}
            training &= not memory.lack(self.shape, self.dtype, "training", self.settings.device)
            self.references[key] = compute_reference(problem, problem.sets[0], training=training)
        return self.references[key]

    def rows(self, status: str, reason: str) -> list[Row]:
        return [self._row(found, status, reason) for found in self.implementations]

    def _prepare(self, found: Implementation, problem: Problem, expected: Reference) -> tuple[Layer | None, Row]:
        """Builds an implementation, checks it and measures its memory; without a layer, the row says why not."""
        lack = found.unavailable(problem.device) or found.unsuited(problem)
        if time.monotonic() > self.deadline:
            lack = results.OUT_OF_TIME
        row = self._row(found, results.OK, "")
        try:
            if not lack and found.step_by_step and (over := self._over_limit(self._estimate(found))):
                lack = f"an estimated {over}"
            if lack:
                return None, self._row(found, results.SKIPPED, lack)
            layer = found.build(problem)
            call, forget = contestant(layer, problem.sets, self.pass_)
            forget()  # what one that raised has left in the inputs
            # The first call also does what is done once: a kernel's module is loaded, a plan made, a pool filled.
            spikes = step(layer, problem.sets[0], self.pass_)
            if found.function == "same":
                tf32 = self.settings.tf32 and problem.device.type == "cuda"
                tolerance = tolerance_for(self.dtype, tf32=tf32, rounds_state=found.rounds_state)
                gradients = self._gradients(layer, problem)
                row |= compare(spikes.detach(), gradients, problem, expected, tolerance)._asdict()
            del spikes
            clock, seconds = clock_for(problem.device), math.inf
            for _ in range(2):  # if a call passes the limit another: one may have been held up
                if seconds > self.settings.call_limit:
                    seconds = min(seconds, clock.time(lambda: call(0), forget).wall)
            if over := self._over_limit(seconds):
                return None, self._row(found, results.SKIPPED, over)
            if self.settings.peak:
                row["peak_bytes"], row["peak_source"] = self._peak(found, lambda: call(0), forget)
            forget()
            return layer, row | {"note": found.note(problem)}
        except WrongResultError as error:
            return None, self._row(found, results.REFUSED, str(error))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None, self._row(found, results.SKIPPED, "out of memory")
        except REFUSALS as error:
            if type(error).__module__.startswith(COMPILERS):
                return None, self._row(found, results.SKIPPED, f"torch cannot compile it: {error}")
            return None, self._row(found, results.FAILED, f"{type(error).__name__}: {error}")

    def _over_limit(self, seconds: float) -> str:
        limit = self.settings.call_limit
        return "" if seconds <= limit else f"{seconds:.3g} s a call, over the limit of {limit:g} s"

    def _estimate(self, found: Implementation) -> float:
        """Seconds that a call takes, from a few time steps, of an implementation whose cost is linear in them."""
        steps = min(self.shape.T, max(FEWEST_PROBED_STEPS, round(self.shape.T * PROBED_SHARE)))
        shorter, device = dataclasses.replace(self.shape, T=steps), self.settings.device
        problem = make_problem(shorter, self.dtype, "spikes", device, sets=1)
        layer, clock = found.build(problem), clock_for(device)
        walls = (clock.time(lambda: step(layer, problem.sets[0], self.pass_)).wall for _ in range(PROBES))
        return min(walls) * self.shape.T / steps

    def _peak(
        self, found: Implementation, call: Callable[[], object], forget: Callable[[], object]
    ) -> tuple[int | None, str]:
        """Peak memory and how it was measured: once for all inputs and numbers of threads, which do not change it."""
        key, device = (found.label, self.shape.name, self.dtype, self.pass_), self.settings.device
        if key not in self.peaks:
            forget()
            try:
                if device.type == "cuda":
                    peak = memory.peak_on_gpu(call, device)
                else:
                    case = found, self.shape, self.dtype, self.pass_, self.threads, self.settings.learn_decay
                    peak = memory.in_a_fresh_process(memory.peak_on_cpu, *case)
                self.peaks[key] = peak, memory.SOURCES[device.type]
            except (OSError, RuntimeError, PicklingError) as error:  # a killed process makes no rival a wrong one
                self.peaks[key] = None, f"not measured: {type(error).__name__}: {error}"
        return self.peaks[key]

    def _gradients(self, layer: Layer, problem: Problem) -> dict[str, torch.Tensor]:
        if self.pass_ == "forward":
            return {}
        x = problem.sets[0].x
        gradients = layer.gradients() | ({} if x.grad is None else {"x": x.grad})
        required = {"weight", "bias_ih", "bias_hh", *["x"] * x.requires_grad, *["decay"] * problem.learn_decay}
        if missing := required - set(gradients):
            raise WrongResultError(f"gradient of {', '.join(sorted(missing))}: got none")
        return gradients

    def _row(self, found: Implementation, status: str, note: str) -> Row:
        on_cuda_in_float32 = self.settings.device.type == "cuda" and self.dtype == "float32"
        return results.row(
            self.environment,
            self.shape,
            **found.columns,
            **dict(zip(results.CASE[1:], (self.dtype, self.kind, self.pass_, self.threads), strict=True)),
            spike_rate=rate_of(self.kind),
            tf32=("on" if self.settings.tf32 else "off") if on_cuda_in_float32 else "n/a",
            status=status,
            copy_bandwidth=self.ceilings.copy,
            matrix_rate=self.ceilings.matrix,
            note=" ".join(note.split()),
        )


def run(settings: Settings, environment: Environment, advance: Callable[[str], None]) -> Iterator[list[Row]]:
    """Yields the rows of one case after another, each announced by its name: timed, skipped, failed or refused."""
    deadline = time.monotonic() + settings.time_limit
    ceilings, peaks, references = {}, {}, {}  # type: ignore[var-annotated]
    for threads, dtype in itertools.product(settings.threads, settings.dtypes):
        torch.set_num_threads(threads)
        ceilings[threads, dtype] = measure_ceilings(settings.device, dtype)
    # The input is the outermost, so that a run which is cut short has every shape on one of them.
    cases = itertools.product(settings.inputs, settings.shapes, settings.dtypes, settings.passes, settings.threads)
    for kind, shape, dtype, pass_, threads in cases:
        if (shape.name, dtype, kind, pass_, str(threads)) in settings.done:
            continue
        advance(f"{shape} {dtype} {kind} {pass_}, {threads} thread{'s' * (threads > 1)}")
        rates = ceilings[threads, dtype]
        case = Case(settings, environment, shape, dtype, kind, pass_, threads, rates, deadline, peaks, references)
        yield case.rows(results.SKIPPED, results.OUT_OF_TIME) if time.monotonic() > deadline else case.run()
