"""The results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.table import Table

from .training import Result


def result_table(results: Sequence[Result]) -> Table:
    """A row per implementation."""
    table = Table(title="Handwritten digits, 784 -> 128 -> 10, 25 time steps", title_style="bold")
    table.add_column("implementation", no_wrap=True)
    table.add_column("computed by", no_wrap=True)
    table.add_column("test accuracy", justify="right")
    table.add_column("s / epoch", justify="right")
    table.add_column("peak memory", justify="right")
    for result in results:
        table.add_row(
            result.name,
            result.backend,
            f"{result.accuracy:.1%}",
            f"{median(result.epoch_seconds):.3f}",
            "unknown" if result.peak_memory is None else f"{result.peak_memory / 2**20:.0f} MiB",
        )
    kinds = " / ".join(sorted({result.memory_kind for result in results}))
    table.caption = (
        f"s / epoch: median of {len(results[0].epoch_seconds)}, training steps alone; drawing the spikes is the same "
        f"for all and not counted. Peak memory: {kinds}, each implementation in a process of its own."
    )
    table.caption_justify = "left"
    return table
