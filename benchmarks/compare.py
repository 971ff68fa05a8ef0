"""``python -m benchmarks.compare OLD NEW``: what has moved between two CSV files by more than the spread of its times.

A median has moved when it differs by more than three standard deviations of the two rows' times, taken from their
median absolute deviations, and by more than a tenth: what a machine does to a process as a whole is in no row's spread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.results import FAILED, OK, REFUSED, SKIPPED, microseconds, read

DEVIATIONS = 3.0
DEVIATION_OF_MAD = 1.4826  # the standard deviation of normal values over their median absolute deviation
LEAST_CHANGE = 0.1
KEY = ["shape", *"TNCH", "dtype", "tf32", "input", "pass", "threads", "label"]
VERDICTS = ("broken", "slower", "faster", "no longer timed", "unmoved", "only in the old file", "only in the new one")


class IncomparableError(ValueError):
    """Two files are not of one machine, or have no case in common."""


def differences(old: pd.DataFrame, new: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns among ``names`` that differ between the runs, and how."""
    values = [(name, *(", ".join(sorted(set(run[name].astype(str)))) for run in (old, new))) for name in names]
    return [f"{name} {before} -> {after}" for name, before, after in values if before != after]


def compare(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows of both runs side by side, with a ``verdict``, and the ``ratio`` of the new time to the old one.

    Raises:
        IncomparableError: If the machines differ, or nothing was timed in both.
    """
    if other := differences(old, new, ["device"]):
        raise IncomparableError(f"{other[0]}: times of different machines say nothing")
    rows = old.merge(new, on=KEY, how="outer", suffixes=("", "_new"), indicator=True)
    rows = rows[(rows["_merge"] != "both") | (rows.status == OK)]
    if not (rows["_merge"] == "both").any():
        raise IncomparableError("cases: got none that was timed in both files")
    ratio = rows.median_us_new / rows.median_us
    deviation = DEVIATION_OF_MAD * np.hypot(rows.spread_us.fillna(0), rows.spread_us_new.fillna(0))
    moved = (rows.median_us_new - rows.median_us).abs() > DEVIATIONS * deviation
    verdict = {
        "only in the old file": rows["_merge"] == "left_only",
        "only in the new one": rows["_merge"] == "right_only",
        "no longer timed": rows.status_new == SKIPPED,
        "broken": rows.status_new.isin([FAILED, REFUSED]),
        "slower": moved & (ratio > 1 + LEAST_CHANGE),
        "faster": moved & (1 / ratio > 1 + LEAST_CHANGE),
    }
    return rows.assign(ratio=ratio, verdict=np.select([*verdict.values()], [*verdict], "unmoved"))


def report(rows: pd.DataFrame) -> str:
    """The comparison as lines of text: what got worse first, and at the end the counts."""
    lines = []
    for verdict in VERDICTS[:4]:
        found = rows[rows.verdict == verdict].sort_values("ratio", ascending=verdict == "faster")
        for row in found.to_dict("records"):
            why = row["note_new"]
            if verdict in ("slower", "faster"):
                runs = ((row["median_us" + run], row["spread_us" + run]) for run in ("", "_new"))
                times = " -> ".join(f"{microseconds(median)} ± {microseconds(spread)}" for median, spread in runs)
                why = f"{times}, {row['ratio']:.2f}×"
            case = " ".join(str(row[name]) for name in ("shape", "dtype", "input", "pass"))
            lines.append(f"{verdict}: {row['label']}, {case} ({row['threads']}): {why}")
    lines.append(", ".join(f"{(rows.verdict == verdict).sum()} {verdict}" for verdict in VERDICTS))
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
        old, new = read(options.old), read(options.new)
        rows = compare(old, new)
    except (OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    for difference in differences(old, new, ("torch", "cuda", "driver", "python")):
        print(f"differs: {difference}")
    print(report(rows))
    return int(rows.verdict.isin(["slower", "broken"]).any())


if __name__ == "__main__":
    sys.exit(main())
