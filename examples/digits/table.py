"""The results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from .training import Result


def times(result: Result, first: Result) -> float:
    """How many times the first's time a step took: the median of the ratios of the same batch."""
    return float(np.median(result.step_seconds / first.step_seconds))


def result_table(results: Sequence[Result]) -> Table:
    """A row per implementation."""
    table = Table(title="Handwritten digits, 784 -> 128 -> 10, 25 time steps", title_style="bold")
    table.add_column("implementation", no_wrap=True)
    table.add_column("computed by", no_wrap=True)
    table.add_column("test accuracy", justify="right")
    table.add_column("ms / batch", justify="right")
    table.add_column(f"times {results[0].name}", justify="right")
    table.add_column("peak memory", justify="right")
    for result in results:
        table.add_row(
            result.name,
            result.backend,
            f"{result.accuracy:.1%}",
            f"{1e3 * np.median(result.step_seconds):.2f}",
            f"{times(result, results[0]):.2f}",
            "unknown" if result.peak_memory is None else f"{result.peak_memory / 2**20:.0f} MiB",
        )
    kinds = " / ".join(sorted({result.memory_kind for result in results}))
    table.caption = (
        f"ms / batch: median of {len(results[0].step_seconds)} training steps, taken in turns; drawing the spikes is "
        f"the same for all and not counted. times {results[0].name}: median of the ratios, batch by batch. "
        f"Peak memory: {kinds}, each implementation in a process of its own."
    )
    table.caption_justify = "left"
    return table
