"""``python -m benchmarks.compare OLD NEW``: what has moved between two CSV files by more than the spread of its times.

A median has moved when it differs by more than three standard deviations of the two rows' times, taken from their
median absolute deviations, and by more than a tenth: what a machine does to a process as a whole is in no row's spread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.results import FAILED, OK, REFUSED, SKIPPED, microseconds, read

DEVIATIONS = 3.0
DEVIATION_OF_MAD = 1.4826  # the standard deviation of normal values over their median absolute deviation
LEAST_CHANGE = 0.1
KEY = ["shape", *"TNCH", "dtype", "tf32", "input", "pass", "threads", "label"]
# Where one of these differs, it may be the reason, and is said. Where the device does, times say nothing of the code.
CONTEXT = ("torch", "cuda", "driver", "python")


class IncomparableError(ValueError):
    """Two files are not of one machine, or have no case in common."""


@dataclass(frozen=True)
class Comparison:
    """Two runs: rows that both have in common, with a ``verdict`` and the ``ratio`` of times; counts; context."""

    rows: pd.DataFrame
    only_old: int
    only_new: int
    context: list[str]

    def of(self, verdict: str) -> pd.DataFrame:
        return self.rows[self.rows.verdict == verdict].sort_values("ratio", ascending=verdict == "faster")

    @property
    def worse(self) -> bool:
        return bool(self.rows.verdict.isin(["slower", "broken"]).any())


def compare(old: pd.DataFrame, new: pd.DataFrame) -> Comparison:
    """Compares the rows that two runs have in common and the old one timed.

    Raises:
        IncomparableError: If the machines differ, or nothing was timed in both.
    """
    before, after = (", ".join(sorted(set(run.device))) for run in (old, new))
    if before != after:
        raise IncomparableError(f"device: got {before} and {after}; times of different machines say nothing")
    context = []
    for name in CONTEXT:
        before, after = (", ".join(sorted(set(run[name].astype(str)))) for run in (old, new))
        if before != after:
            context.append(f"{name} {before} -> {after}")
    both = old.merge(new, on=KEY, how="outer", suffixes=("", "_new"), indicator=True)
    counts = both["_merge"].value_counts()
    rows = both[(both["_merge"] == "both") & (both.status == OK)].copy()
    rows["ratio"] = rows.median_us_new / rows.median_us
    deviation = DEVIATION_OF_MAD * (rows.spread_us.fillna(0) ** 2 + rows.spread_us_new.fillna(0) ** 2) ** 0.5
    moved = (rows.median_us_new - rows.median_us).abs() > DEVIATIONS * deviation
    rows["verdict"] = "unmoved"
    rows.loc[moved & (rows.ratio > 1 + LEAST_CHANGE), "verdict"] = "slower"
    rows.loc[moved & (1 / rows.ratio > 1 + LEAST_CHANGE), "verdict"] = "faster"
    rows.loc[rows.status_new == SKIPPED, "verdict"] = "no longer timed"
    rows.loc[rows.status_new.isin([FAILED, REFUSED]), "verdict"] = "broken"
    if rows.empty:
        raise IncomparableError("cases: got none that was timed in both files")
    return Comparison(rows, int(counts["left_only"]), int(counts["right_only"]), context)


def report(found: Comparison) -> str:
    """The comparison as lines of text: what got worse first, and at the end the counts."""
    lines = [f"differs: {difference}" for difference in found.context]
    for verdict in ("broken", "slower", "faster", "no longer timed"):
        for row in found.of(verdict).to_dict("records"):
            name = f"{row['label']}, {row['shape']} {row['dtype']} {row['input']} {row['pass']} ({row['threads']})"
            why = row["note_new"]
            if verdict in ("slower", "faster"):
                runs = ((row["median_us" + run], row["spread_us" + run]) for run in ("", "_new"))
                times = " -> ".join(f"{microseconds(median)} ± {microseconds(spread)}" for median, spread in runs)
                why = f"{times}, {row['ratio']:.2f}×"
            lines.append(f"{verdict}: {name}: {why}")
    verdicts = ("slower", "faster", "broken", "no longer timed", "unmoved")
    counts = ", ".join(f"{len(found.of(verdict))} {verdict}" for verdict in verdicts)
    lines.append(f"{counts}; {found.only_old} only in the old file, {found.only_new} only in the new one")
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
        found = compare(read(options.old), read(options.new))
    except (OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    print(report(found))
    return 1 if found.worse else 0


if __name__ == "__main__":
    sys.exit(main())
