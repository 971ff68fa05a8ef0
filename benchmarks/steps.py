"""Commands one after another: a time limit and a log for each, and a summary that no failure hides."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
SECONDS = "{seconds}"  # in a command: 90% of the step's limit, for a program that can end by itself in time
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of the step, and of its log.
        command: Program and arguments, where :data:`SECONDS` stands for the time it has.
        limit: Seconds that are kept for it, whatever the steps before it take. What they leave over is added.
        environment: Variables to set.
        missing: Why it cannot run, such as a tool that is not installed; empty when it can.
        required: Whether a missing step is a failed one, or only a skipped one.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    required: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    status: str
    seconds: float
    reason: str = ""

    @property
    def good(self) -> bool:
        return self.status in (PASSED, SKIPPED)


def run_steps(
    steps: Sequence[Step],
    logs: Path,
    folder: Path,
    *,
    budget: float | None = None,
    announce: Callable[[str], None] = print,
    after: Callable[[Sequence[Outcome]], object] = lambda outcomes: None,
) -> list[Outcome]:
    """Runs every step, whatever became of those before it.

    Args:
        steps: In order.
        logs: Folder for one log per step, made if need be.
        folder: Where the commands run.
        budget: Seconds for all of them; the sum of their limits when None. A step may use its own limit, and what
            the steps before it left over, but not what is kept for the steps after it.
        announce: Called with a line before and after each step.
        after: Called after each step with all outcomes so far.
    """
    logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + (sum(step.limit for step in steps) if budget is None else budget)
    outcomes = []
    for index, step in enumerate(steps):
        kept = sum(later.limit for later in steps[index + 1 :] if not later.missing)
        limit = end - kept - time.monotonic()
        announce(f"[{index + 1}/{len(steps)}] {step.name}, at most {max(limit, 0):.0f} s")
        outcome = run_step(step, logs / f"{index + 1:02d}-{step.name}.log", folder, limit)
        announce(f"[{index + 1}/{len(steps)}] {describe(outcome)}")
        outcomes.append(outcome)
        after(outcomes)
    return outcomes


def run_step(step: Step, log: Path, folder: Path, limit: float) -> Outcome:
    """Runs one step for at most ``limit`` seconds, its output in ``log``."""
    with log.open("w", encoding="utf-8") as output:
        if step.missing:
            output.write(f"{step.missing}\n")
            return Outcome(step.name, FAILED if step.required else SKIPPED, 0.0, step.missing)
        if limit <= 0:
            output.write("not started: no time is left\n")
            return Outcome(step.name, TIMED_OUT, 0.0, "not started: no time is left")
        command = _command(step, limit)
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        start = time.monotonic()
        try:
            # A session of its own, so that what the command starts ends with it.
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n")
            return Outcome(step.name, FAILED, 0.0, str(error))
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            seconds = time.monotonic() - start
            output.write(f"stopped after {seconds:.0f} s\n")
            return Outcome(step.name, TIMED_OUT, seconds, f"stopped at its limit of {limit:.0f} s")
        except BaseException:  # an interrupt: the command must not outlive this program
            _end(process)
            raise
        seconds = time.monotonic() - start
    if code == 0:
        return Outcome(step.name, PASSED, seconds)
    return Outcome(step.name, FAILED, seconds, f"exit code {code}; last line: {_last_line(log)}")


def describe(outcome: Outcome) -> str:
    """One line of the summary."""
    reason = f"  {outcome.reason}" if outcome.reason else ""
    return f"{outcome.name:<20} {outcome.status:<10} {outcome.seconds:6.1f} s{reason}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """The last lines: a table of the steps, and whether all is well."""
    bad = [outcome.name for outcome in outcomes if not outcome.good]
    verdict = f"{len(bad)} of {len(outcomes)} steps failed: {', '.join(bad)}" if bad else "every step passed"
    total = sum(outcome.seconds for outcome in outcomes)
    return "\n".join([*map(describe, outcomes), f"{total:.0f} s in all; {verdict}"])


def _command(step: Step, limit: float) -> list[str]:
    return [part.replace(SECONDS, str(max(1, int(0.9 * limit)))) for part in step.command]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started: asked first, then made to."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
