"""One row per task and implementation: for the CSV, and as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.end_to_end.runner import REACHED, SKIPPED, Runner
from benchmarks.end_to_end.tasks import Task
from benchmarks.environment import Environment
from benchmarks.memory import SOURCES

STYLES = {REACHED: "", SKIPPED: "dim"}


@dataclass(frozen=True)
class Row:
    """What came of one implementation at one task.

    Times are seconds of training steps; None where there is none. `steps` and `epochs` are those to the target, and
    `final_accuracy` was measured after `final_steps`, which are the same for all that ran to the end.
    """

    task: str
    implementation: str
    computed_by: str
    status: str
    target_accuracy: float
    steps: int | None
    epochs: float | None
    seconds: float | None
    step_seconds: float | None
    final_steps: int
    final_accuracy: float | None
    peak_bytes: int | None
    peak_source: str
    note: str

    def record(self, environment: Environment, *, snntorch: str, tf32: str) -> dict[str, object]:
        """The CSV's line: the run's facts, then the row's."""
        facts = {**asdict(environment), "snntorch": snntorch, "tf32": tf32, **asdict(self)}
        return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in facts.items()}


def row(task: Task, runner: Runner, device: torch.device) -> Row:
    """The row of a runner after its race."""
    steps = runner.reached_at
    return Row(
        task=task.name,
        implementation=runner.implementation.name,
        computed_by=runner.implementation.backend,
        status=runner.status,
        target_accuracy=task.target,
        steps=steps,
        epochs=None if steps is None else steps / task.learn.batches,
        seconds=runner.seconds_to_target,
        step_seconds=runner.median_step,
        final_steps=len(runner.seconds),
        final_accuracy=runner.accuracy,
        peak_bytes=runner.peak,
        peak_source="" if runner.peak is None else SOURCES[device.type],
        note=runner.note,
    )


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints a table for each task."""
    for name, group in groupby(rows, lambda row: row.task):
        found = list(group)
        table = Table(title=f"{name}, to {found[0].target_accuracy:.0%} of the held-out set", title_justify="left")
        table.add_column("implementation", no_wrap=True)
        table.add_column("computed by", no_wrap=True)
        for column in ("time to it", "steps", "epochs", "ms / step", "last accuracy", "after steps", "peak MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        for row in found:
            table.add_row(
                row.implementation,
                row.computed_by,
                "never" if row.seconds is None else f"{row.seconds:.1f} s",
                _shown(row.steps, "d"),
                _shown(row.epochs, ".1f"),
                _shown(None if row.step_seconds is None else 1e3 * row.step_seconds, ".1f"),
                _shown(row.final_accuracy, ".1%"),
                str(row.final_steps),
                _shown(None if row.peak_bytes is None else row.peak_bytes / 2**20, ".1f"),
                f"{row.status}: {row.note}" if row.note else "",
                style=STYLES.get(row.status, "bold red"),
            )
        console.print(table)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
