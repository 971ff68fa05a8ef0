"""One row per implementation, shape, dtype, pass and input; the CSV file that holds them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

OUT_OF_TIME = "the run's time limit was reached"
OK, SKIPPED, FAILED, REFUSED = STATUSES = ("ok", "skipped", "failed", "refused")


@dataclass(frozen=True)
class Row:
    """One line of the CSV; a field's name is its column (``pass_`` is ``pass``), and None is an empty cell.

    Times are microseconds. ``median_us``, ``spread_us`` (median absolute deviation) and ``least_us`` are the device's
    time, ``wall_us`` the median for the caller; on a CPU the two are one. ``copy_bandwidth`` is in bytes per second and
    ``matrix_rate`` in operations per second, as measured in the same run. ``speedup_over_rnn`` is nn.RNN's median over
    this one's, ``time_over_linear`` this one's over nn.Linear's.
    """

    device_type: str
    device: str
    driver: str
    torch: str
    cuda: str
    python: str
    leakypar: str
    commit: str
    threads: int
    load: float  # processes that ran or waited, on average over the minute before the run
    tf32: str  # "on" or "off" for float32 on a GPU, else "n/a"
    dtype: str
    shape: str
    T: int
    N: int
    C: int
    H: int
    pass_: str
    input: str  # "spikes" or "normal"
    spike_rate: float | None
    implementation: str
    plan: str
    function: str
    status: str
    rounds: int | None = None
    median_us: float | None = None
    spread_us: float | None = None
    least_us: float | None = None
    wall_us: float | None = None
    peak_bytes: int | None = None
    peak_source: str = ""
    spike_mismatch: float | None = None
    gradient_error: float | None = None
    copy_bandwidth: float | None = None
    matrix_rate: float | None = None
    bound_us: float | None = None
    share_of_bound: float | None = None
    speedup_over_rnn: float | None = None
    time_over_linear: float | None = None
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.implementation} ({self.plan})" if self.plan else self.implementation


_FIELDS = [field.name for field in dataclasses.fields(Row)]
_HINTS = get_type_hints(Row)
COLUMNS = [name.rstrip("_") for name in _FIELDS]


class Writer:
    """Writes rows as they come, so that a run that is cut short leaves what it has measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(COLUMNS)

    def write(self, rows: Iterable[Row]) -> None:
        with self._path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [_text(getattr(row, name)) for name in _FIELDS] for row in rows
            )


def read_rows(path: Path) -> list[Row]:
    """Reads a CSV file.

    Raises:
        ValueError: If its columns are not :data:`COLUMNS`, or a cell does not hold its column's type.
    """
    with path.open(newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != COLUMNS:
            raise ValueError(f"{path}: got columns {', '.join(header) or 'none'}; expected {', '.join(COLUMNS)}")
        return [_row(path, reader.line_num, cells) for cells in reader]


def finished(rows: Iterable[Row]) -> list[Row]:
    """The rows of the cases that a run came to the end of, before its time limit."""
    cases: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.shape, row.dtype, row.input, row.pass_), []).append(row)
    return [row for case in cases.values() if all(row.note != OUT_OF_TIME for row in case) for row in case]


def _row(path: Path, line: int, cells: Sequence[str]) -> Row:
    if len(cells) != len(_FIELDS):
        raise ValueError(f"{path}:{line}: got {len(cells)} cells, expected {len(_FIELDS)}")
    values: dict[str, Any] = {}
    for name, cell in zip(_FIELDS, cells, strict=True):
        optional = type(None) in get_args(_HINTS[name])
        kind = next((kind for kind in get_args(_HINTS[name]) if kind is not type(None)), _HINTS[name])
        try:
            values[name] = None if optional and not cell else kind(cell)
        except ValueError as error:
            raise ValueError(f"{path}:{line}: column {name}: {error}") from error
    return Row(**values)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
