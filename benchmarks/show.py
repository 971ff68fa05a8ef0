"""The rows of a run as tables on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from benchmarks.results import FAILED, OK, REFUSED, SKIPPED, Row

STYLES = {OK: "", SKIPPED: "dim", FAILED: "bold red", REFUSED: "bold red"}


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints one table per dtype, input and pass, a section per shape; rows that were not timed say why."""

    def key(row: Row) -> tuple[str, str, str]:
        return row.dtype, row.input, row.pass_

    for (dtype, kind, pass_), same in groupby(sorted(rows, key=key), key):
        group = list(same)
        first = group[0]
        tf32 = "" if first.tf32 == "n/a" else f", TF32 {first.tf32}"
        rate = "" if first.spike_rate is None else f" at a rate of {first.spike_rate:g}"
        table = Table(title=f"{pass_}, {dtype}{tf32}, {kind}{rate}", title_justify="left")
        table.add_column("shape (T, N, C, H)")
        table.add_column("implementation", no_wrap=True)
        for column in ("median", "± MAD", "wall", "× nn.RNN", "/ nn.Linear", "of bound", "peak MiB"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("")
        for name, section in groupby(group, lambda row: row.shape):
            found = list(section)
            reasons = {(row.status, row.note) for row in found}
            if len(reasons) == 1 and found[0].status != OK:  # said once for all
                found = [dataclasses.replace(found[0], implementation="all", plan="")]
            for index, row in enumerate(found):
                shape = f"{name} ({row.T}, {row.N}, {row.C}, {row.H})" if index == 0 else ""
                table.add_row(shape, row.label, *_cells(row), _remark(row), style=STYLES[row.status])
            table.add_section()
        console.print(table)
    copies = {row.copy_bandwidth for row in rows if row.copy_bandwidth}
    rates = {row.dtype: row.matrix_rate for row in rows if row.matrix_rate}
    for row in rows[:1]:
        measured = ", ".join(f"{dtype} products {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
        console.print(
            f"{row.device}, {row.threads} threads, torch {row.torch}, leakypar {row.leakypar} at {row.commit}; "
            f"copy {max(copies, default=0) / 1e9:.1f} GB/s, {measured}"
        )


def microseconds(value: float) -> str:
    """A time with three significant digits, in the unit that suits it."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if value >= 0.9995 * size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value)} µs"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


def _cells(row: Row) -> list[str]:
    def show_with(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        "" if row.median_us is None else microseconds(row.median_us),
        "" if row.spread_us is None else microseconds(row.spread_us),
        "" if row.wall_us is None else microseconds(row.wall_us),
        show_with(row.speedup_over_rnn, ".2f"),
        show_with(row.time_over_linear, ".2f"),
        show_with(row.share_of_bound, ".0%"),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
    ]


def _remark(row: Row) -> str:
    return row.note if row.status == OK else f"{row.status}: {row.note}"
