"""One row per implementation, shape, dtype, pass, input and number of threads; the CSV file that holds them.

A row is a dict by :data:`COLUMNS`, a missing value an empty cell. Times are microseconds. ``median_us``, ``spread_us``
(median absolute deviation) and ``least_us`` are the device's time, ``wall_us`` the median for the caller; on a CPU the
two are one. ``copy_bandwidth`` is in bytes and ``matrix_rate`` in operations a second, as measured in the same run.
``speedup_over_rnn`` is the median over the rounds of nn.RNN's time over this one's, ``time_over_linear`` of this one's
over nn.Linear's. ``load``: processes that ran or waited in the minute before the run; ``tf32``: of float32 on a GPU.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import Environment
from leakypar.measuring import Shape

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
OUT_OF_TIME = "the run's time limit was reached"
OK, SKIPPED, FAILED, REFUSED = "ok", "skipped", "failed", "refused"
_NAMES = (
    "device_type device driver torch cuda python leakypar commit threads load tf32 dtype shape T N C H pass input "
    "spike_rate implementation plan backend function status rounds median_us spread_us least_us wall_us peak_bytes "
    "peak_source spike_mismatch gradient_error copy_bandwidth matrix_rate bound_us share_of_bound speedup_over_rnn "
    "time_over_linear time_over_linear_spread note"
)
COLUMNS = _NAMES.split()
TEXT = ["implementation", "plan", "backend", "function", "status", "peak_source", "note", "cuda", "driver", "tf32"]
NUMBERS = ("threads", *"TNCH", "median_us", "spread_us", "peak_bytes")
CASE = ["shape", "dtype", "input", "pass", "threads"]


def label(row: Row) -> str:
    return f"{row['implementation']} ({row['plan']})" if row["plan"] else str(row["implementation"])


def row(environment: Environment, shape: Shape, **columns: Any) -> Row:
    """A row of what was run where, with these columns (``pass_`` for ``pass``); the others are empty."""
    sizes = {"shape": shape.name, **{size: getattr(shape, size) for size in "TNCH"}}
    given = {name.rstrip("_"): value for name, value in columns.items()}
    return dict.fromkeys(COLUMNS) | {"tf32": "n/a", "status": OK, "note": ""} | vars(environment) | sizes | given


class Writer:
    """Writes rows as they come, so that a run that is cut short leaves what it has measured; needs no pandas."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._columns = path, columns
        path.write_text(",".join(columns) + "\n")

    def write(self, rows: Iterable[Row]) -> None:
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            for row in rows:
                cells = ((name, f"{cell:.6g}" if isinstance(cell, float) else cell) for name, cell in row.items())
                writer.writerow(dict(cells))


def finished(path: Path) -> list[Row]:
    """The rows, as text, of the cases that a run came to the end of before its time limit."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cut = [[row[name] for name in CASE] for row in rows if row["note"] == OUT_OF_TIME]
    return [row for row in rows if [row[name] for name in CASE] not in cut]


def read(path: Path) -> pd.DataFrame:
    """Reads a CSV file, with ``label`` as a further column; it may have more columns than :data:`COLUMNS`.

    Raises:
        ValueError: If a column is missing, or one of numbers holds something else.
    """
    import pandas as pd

    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    if missing := set(COLUMNS) - set(frame):
        raise ValueError(f"{path}: got no column {', '.join(sorted(missing))}")
    frame[TEXT] = frame[TEXT].astype(object).fillna("").astype(str)
    for name in NUMBERS:
        try:
            frame[name] = pd.to_numeric(frame[name])
        except ValueError as error:
            raise ValueError(f"{path}: column {name}: {error}") from error
    frame["label"] = [label(row) for row in frame.to_dict("records")]
    return frame


def kind_of(path: Path) -> str:
    """What a CSV file is of, by its name: ``growth``, ``events`` and so on; nothing for a run of everything."""
    found = re.search("-(quick|partial|growth|events|rates|memory|host|tuning)$", path.stem)
    return found[1] if found else ""


def microseconds(value: float) -> str:
    """A time with three significant digits, in the unit that suits it."""
    size, unit = next(((size, unit) for size, unit in ((1e6, "s"), (1e3, "ms")) if value >= 0.9995 * size), (1.0, "µs"))
    return f"{f'{value / size:#.3g}'.rstrip('.') if value / size < 999.5 else f'{value / size:.0f}'} {unit}"
