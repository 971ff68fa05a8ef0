"""``python -m benchmarks.compare OLD NEW``: what has moved between two CSV files by more than the spread of its times.

A median has moved when it differs by more than three standard deviations of the two rows' times, taken from their
median absolute deviations, and by more than a tenth: what a machine does to a process as a whole is in no row's spread.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import FAILED, OK, REFUSED, Row, read_rows
from benchmarks.show import microseconds

DEVIATIONS = 3.0
DEVIATION_OF_MAD = 1.4826  # the standard deviation of normal values over their median absolute deviation
LEAST_CHANGE = 0.1
# Where one of these differs, times say nothing about the code.
MACHINE = ("device", "threads")
# Where one of these differs, it may be the reason, and is said.
CONTEXT = ("torch", "cuda", "driver", "python")


class IncomparableError(ValueError):
    """Two files are not of one machine, or have no case in common."""


@dataclass
class Comparison:
    """Two runs, row by row.

    Attributes:
        slower: Pairs of old and new rows, the worst first.
        faster: Likewise, the best first.
        broken: Rows that were timed and have now failed or been refused.
        unmeasured: Rows that were timed and are now skipped.
        steady: How many rows have not moved.
        only_old: How many of the old run's cases the new run lacks.
        only_new: How many of the new run's cases the old run lacks.
        context: What else differs, such as ``torch 2.12.0 -> 2.13.0``.
    """

    slower: list[tuple[Row, Row]] = field(default_factory=list)
    faster: list[tuple[Row, Row]] = field(default_factory=list)
    broken: list[Row] = field(default_factory=list)
    unmeasured: list[Row] = field(default_factory=list)
    steady: int = 0
    only_old: int = 0
    only_new: int = 0
    context: list[str] = field(default_factory=list)

    @property
    def worse(self) -> bool:
        return bool(self.slower or self.broken)


def compare(old: Sequence[Row], new: Sequence[Row]) -> Comparison:
    """Compares the rows that two runs have in common.

    Raises:
        IncomparableError: If the machines differ, or nothing was timed in both.
    """
    for name in MACHINE:
        before, after = _values(old, name), _values(new, name)
        if before != after:
            raise IncomparableError(f"{name}: got {before} and {after}; times of different machines say nothing")
    found = Comparison()
    for name in CONTEXT:
        before, after = _values(old, name), _values(new, name)
        if before != after:
            found.context.append(f"{name} {before} -> {after}")

    earlier, later = ({_case(row): row for row in rows} for rows in (old, new))
    found.only_old = len(earlier.keys() - later.keys())
    found.only_new = len(later.keys() - earlier.keys())
    for case, before_row in earlier.items():
        after_row = later.get(case)
        if after_row is None or before_row.status != OK:
            continue
        if after_row.status in (FAILED, REFUSED):
            found.broken.append(after_row)
        elif after_row.status != OK:
            found.unmeasured.append(after_row)
        elif not moved(before_row, after_row):
            found.steady += 1
        else:
            (found.slower if _ratio(before_row, after_row) > 1 else found.faster).append((before_row, after_row))
    if not (found.worse or found.faster or found.steady or found.unmeasured):
        raise IncomparableError("cases: got none that was timed in both files")
    found.slower.sort(key=lambda pair: -_ratio(*pair))
    found.faster.sort(key=lambda pair: _ratio(*pair))
    return found


def moved(old: Row, new: Row) -> bool:
    """Whether two timed rows differ by more than their spread explains."""
    deviation = DEVIATION_OF_MAD * math.hypot(old.spread_us or 0.0, new.spread_us or 0.0)
    ratio = _ratio(old, new)
    return max(ratio, 1 / ratio) > 1 + LEAST_CHANGE and abs(_median(new) - _median(old)) > DEVIATIONS * deviation


def report(found: Comparison) -> str:
    """The comparison as lines of text: what got worse first, and at the end the counts."""
    lines = [f"differs: {difference}" for difference in found.context]
    lines += [f"{row.status}: {_name(row)}: {row.note}" for row in found.broken]
    for word, pairs in (("slower", found.slower), ("faster", found.faster)):
        lines += [f"{word}: {_name(new)}: {_time(old)} -> {_time(new)}, {_ratio(old, new):.2f}×" for old, new in pairs]
    lines += [f"no longer timed: {_name(row)}: {row.note}" for row in found.unmeasured]
    lines.append(
        f"{len(found.slower)} slower, {len(found.faster)} faster, {len(found.broken)} broken, "
        f"{len(found.unmeasured)} no longer timed, {found.steady} unmoved; "
        f"{found.only_old} only in the old file, {found.only_new} only in the new one"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares two files.

    Returns:
        0, or 1 when something got slower or broke, or 2 when the files cannot be compared.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="What moved between two runs.")
    parser.add_argument("old", type=Path, help="CSV of the earlier run")
    parser.add_argument("new", type=Path, help="CSV of the later run, on the same machine")
    options = parser.parse_args(arguments)
    try:
        found = compare(read_rows(options.old), read_rows(options.new))
    except (OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    print(report(found))
    return 1 if found.worse else 0


def _case(row: Row) -> tuple[object, ...]:
    return row.shape, row.T, row.N, row.C, row.H, row.dtype, row.tf32, row.pass_, row.input, row.label


def _name(row: Row) -> str:
    return f"{row.label}, {row.shape} {row.dtype} {row.input} {row.pass_}"


def _values(rows: Sequence[Row], name: str) -> str:
    return ", ".join(sorted({str(getattr(row, name)) for row in rows})) or "nothing"


def _median(row: Row) -> float:
    if row.median_us is None:
        raise ValueError(f"{_name(row)}: got status {row.status} without a time")
    return row.median_us


def _ratio(old: Row, new: Row) -> float:
    return _median(new) / _median(old)


def _time(row: Row) -> str:
    return f"{microseconds(_median(row))} ± {microseconds(row.spread_us or 0.0)}"


if __name__ == "__main__":
    sys.exit(main())
