"""``python -m benchmarks.table``: rewrites the README's benchmark tables from the CSV files, and from nothing else.

A table stands between ``<!-- benchmark:cpu -->`` and ``<!-- /benchmark:cpu -->``, and likewise for ``gpu``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.implementations import BASELINE, FLOOR
from benchmarks.results import OK, SKIPPED, Row, read_rows
from benchmarks.show import microseconds

OURS_NAME = "leakypar fused"
OURS = f"{OURS_NAME} (auto)"
INPUT = "spikes"
SNNTORCH = "snntorch LeakyParallel"
HEADS = (
    "shape (T, N, C, H)",
    "dtype",
    "pass",
    "nn.RNN",
    "snntorch",
    "best other",
    "nn.Linear",
    "leakypar",
    "over nn.RNN",
    "of nn.Linear",
    "of bound",
)
BLOCKS = {"cpu": "cpu", "gpu": "cuda"}
NOT_MEASURED = "not yet measured"


def complete(folder: Path) -> list[Path]:
    """The CSV files of complete runs of ``python -m benchmarks``, in a fixed order."""
    return sorted(path for path in folder.glob("*.csv") if not path.stem.endswith(("-quick", "-partial")))


def committed(folder: Path) -> list[Path]:
    """Those of them that are over the named shapes, which the tables are made of."""
    return [path for path in complete(folder) if not path.stem.endswith("-growth")]


def rewrite(text: str, runs: Sequence[Sequence[Row]]) -> str:
    """Replaces what stands between the markers.

    Args:
        text: The README.
        runs: The rows of each CSV file.

    Raises:
        ValueError: If ``text`` does not have a pair of markers exactly once.
    """
    for block, device_type in BLOCKS.items():
        tables = [render(rows) for rows in runs if rows and rows[0].device_type == device_type]
        text = _replace(text, block, "\n\n".join(tables) or NOT_MEASURED)
    return text


def render(rows: Sequence[Row]) -> str:
    """One run as Markdown: where it was made, the table, and what was left out."""
    first = rows[0]
    cuda = "" if first.cuda == "none" else f", CUDA {first.cuda}, driver {first.driver}"
    lines = [
        f"{first.device}, {first.threads} threads, torch {first.torch}{cuda}, leakypar {first.leakypar} "
        f"at `{first.commit}`. Input: random spikes at a rate of {_rate(rows)}. Medians.",
        "",
        f"| {' | '.join(HEADS)} |",
        f"|---|---|---|{'--:|' * (len(HEADS) - 3)}",
    ]
    relatives: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    chosen = [row for row in rows if row.input == INPUT]
    for _, group in groupby(chosen, lambda row: (row.shape, row.dtype, row.pass_)):
        case = {row.label: row for row in group}
        ours = case.get(OURS)
        if ours is None:
            continue
        name = f"{ours.shape} ({ours.T}, {ours.N}, {ours.C}, {ours.H})"
        if ours.status != OK:
            left_out.setdefault(ours.status, []).append(f"{ours.shape} {ours.dtype} {ours.pass_} ({ours.note})")
            continue
        dtype = {"on": f"{ours.dtype} (TF32)"}.get(ours.tf32, ours.dtype)
        other = _best_other(case)
        if other is not None and other.function != "same":
            relatives[other.label] = other.function
        cells = [
            name,
            dtype,
            ours.pass_,
            _time(case.get(BASELINE)),
            _time(case.get(SNNTORCH)),
            "" if other is None else f"{_time(other)} {other.label}{'' if other.function == 'same' else '*'}",
            _time(case.get(FLOOR)),
            _time(ours),
            "" if ours.speedup_over_rnn is None else f"{ours.speedup_over_rnn:.2f}×",
            "" if ours.time_over_linear is None else f"{ours.time_over_linear:.2f}×",
            "" if ours.share_of_bound is None else f"{ours.share_of_bound:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if relatives:
        lines += ["", f"\\* computes a near relative: {_listed(relatives)}."]
    for status, cases in left_out.items():
        lines += ["", f"{'Not run' if status == SKIPPED else 'Failed'}: {'; '.join(cases)}."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the README in place."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Rewrite the README's tables.")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of CSV files")
    options = parser.parse_args(arguments)
    files = committed(options.results)
    text = options.readme.read_text(encoding="utf-8")
    options.readme.write_text(rewrite(text, [read_rows(path) for path in files]), encoding="utf-8")
    print(f"{options.readme}: rewritten from {', '.join(path.name for path in files) or 'no results'}")
    return 0


def _replace(text: str, block: str, content: str) -> str:
    start, end = f"<!-- benchmark:{block} -->", f"<!-- /benchmark:{block} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if text.count(start) != 1 or text.count(end) != 1 or not pattern.search(text):
        raise ValueError(f"readme: expected {start} ... {end} exactly once")
    return pattern.sub(lambda _: f"{start}\n\n{content}\n\n{end}", text)


def _best_other(case: Mapping[str, Row]) -> Row | None:
    """The fastest of the rivals that have no column of their own."""
    shown = (BASELINE, FLOOR, SNNTORCH)
    timed = [row for label, row in case.items() if label not in shown and row.implementation != OURS_NAME]
    return min((row for row in timed if row.median_us), key=lambda row: row.median_us or 0.0, default=None)


def _listed(functions: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {function}" for label, function in functions.items())


def _rate(rows: Iterable[Row]) -> str:
    rates = sorted({row.spike_rate for row in rows if row.spike_rate is not None})
    return ", ".join(f"{rate:g}" for rate in rates)


def _time(row: Row | None) -> str:
    return "" if row is None or row.median_us is None else microseconds(row.median_us)


if __name__ == "__main__":
    sys.exit(main())
