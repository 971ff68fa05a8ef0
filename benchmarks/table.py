"""``python -m benchmarks.table``: rewrites the tables of README and docs from the CSV files, and from nothing else.

A table stands between ``<!-- benchmark:cpu -->`` and ``<!-- /benchmark:cpu -->``; ``gpu`` likewise. What follows the
name chooses rows in the words of ``pandas.DataFrame.query``: ``<!-- benchmark:cpu shape == "speech" -->``.
``memory:cpu`` is the table of a training step's peak memory.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean as gmean
from typing import Any

import pandas as pd

from benchmarks.environment import RESULTS, ROOT
from benchmarks.implementations import BASELINE, FLOOR
from benchmarks.results import OK, SKIPPED, complete, microseconds, read

OURS, RECOMPUTE = "leakypar fused (auto)", "leakypar fused (recompute)"
SNNTORCH = "snntorch LeakyParallel"
PAGES = (ROOT / "README.md", ROOT / "docs" / "cpu.md")
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
RELATIVE = "\\* computes a near relative"
NOT_MEASURED = "not yet measured"
BLOCK = re.compile(r"(<!-- (benchmark|memory):(cpu|gpu)(.*?) -->\n).*?(<!-- /\2:\3 -->)", re.DOTALL)
MARKER = re.compile(r"<!-- /?(?:benchmark|memory):")


def rewrite(text: str, runs: Sequence[pd.DataFrame]) -> str:
    """Replaces what stands between the markers of each block of a page by tables, one for each run.

    Raises:
        ValueError: If a marker of ``text`` is not one of a pair.
    """

    def content(block: re.Match[str]) -> str:
        begin, kind, device, query, end = block.groups()
        chosen = [run[run.device_type == DEVICES[device]] for run in runs]
        chosen = [rows.query(query.strip()) if query.strip() else rows for rows in chosen]
        tables = [(speed if kind == "benchmark" else memory)(rows) for rows in chosen if (rows.label == OURS).any()]
        return "\n\n".join([begin.rstrip(), *(tables or [NOT_MEASURED]), end])

    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ValueError("page: expected each <!-- benchmark:... --> and <!-- memory:... --> to be one of a pair")
    return BLOCK.sub(content, text)


def speed(rows: pd.DataFrame) -> str:
    """One run as Markdown: where it was made, a line for each case, and what was left out."""
    lines: list[dict[str, object]] = []
    below: dict[str, list[str]] = {}
    for _, case in rows.groupby(["shape", "dtype", "pass", "input", "threads"], sort=False):
        named = {row["label"]: row for row in case.to_dict("records")}
        if OURS not in named:
            continue
        ours = named[OURS]
        if ours["status"] != OK:
            what = f"{ours['shape']} {ours['dtype']} {ours['input']} {ours['pass']} ({ours['note']})"
            below.setdefault("Not run" if ours["status"] == SKIPPED else "Failed", []).append(what)
            continue
        others = case[~case.label.isin([BASELINE, FLOOR, SNNTORCH]) & (case.backend == "") & (case.status == OK)]
        best = None if others.empty else named[others.loc[others.median_us.idxmin(), "label"]]
        near = best is not None and best["function"] != "same"
        if best and near and (what := f"{best['label']}: {best['function']}") not in below.get(RELATIVE, []):
            below.setdefault(RELATIVE, []).append(what)
        spread = _number(ours["time_over_linear_spread"], " ± {:.2f}")
        lines.append(
            {
                "shape (T, N, C, H)": f"{ours['shape']} ({ours['T']}, {ours['N']}, {ours['C']}, {ours['H']})",
                "dtype": f"{ours['dtype']} (TF32)" if ours["tf32"] == "on" else ours["dtype"],
                **{name: ours[name] for name in ("pass", "input", "threads")},
                "nn.RNN": _time(named.get(BASELINE)),
                "snntorch": _time(named.get(SNNTORCH)),
                "best other": f"{_time(best)} {best['label']}{'*' * near}" if best else "",
                "nn.Linear": _time(named.get(FLOOR)),
                "backend": ours["backend"],
                "leakypar": _time(ours),
                "spread": microseconds(ours["spread_us"]),
                "over nn.RNN": _number(ours["speedup_over_rnn"], "{:.2f}×"),
                "of nn.Linear": _number(ours["time_over_linear"], "{:.2f}×") + spread,
                "of bound": _number(ours["share_of_bound"], "{:.0%}"),
            }
        )
    text = [f"{_machine(rows)} Medians; spread: the median absolute deviation.", "", *_markdown(lines)]
    ours = rows[(rows.label == OURS) & (rows.status == OK) & rows.time_over_linear.notna()]
    means = [
        f"{' '.join(map(str, key))} {gmean(found):.2f} (at most {max(found):.2f})"
        for key, found in ours.groupby(["dtype", "pass", "input", "threads"], sort=False).time_over_linear
    ]
    text += ["", f"Of nn.Linear, geometric means: {'; '.join(means)}."] if means else []
    for what, cases in below.items():
        text += ["", f"{what}: {'; '.join(cases)}."]
    return "\n".join(text)


def memory(rows: pd.DataFrame) -> str:
    """The most MiB that a training step holds beside inputs and parameters, by shape and dtype."""
    lines: list[dict[str, object]] = []
    rows = rows[(rows["pass"] == "training") & rows.peak_bytes.notna()]
    for (shape, dtype), case in rows.groupby(["shape", "dtype"], sort=False):
        MiB = (case.groupby("label").peak_bytes.first() / 2**20).reindex([FLOOR, BASELINE, OURS, RECOMPUTE])
        heads = (FLOOR, BASELINE, 'leakypar (backend="fused")', "the same, recompute")
        shown = {head: _number(value, "{:.1f}") for head, value in zip(heads, MiB, strict=True)}
        shown["leakypar / nn.RNN"] = _number(MiB[OURS] / MiB[BASELINE], "{:.2f}")
        shown["recompute / nn.Linear"] = _number(MiB[RECOMPUTE] / MiB[FLOOR], "{:.2f}")
        lines.append({"shape": shape, "dtype": dtype, **shown})
    source = ", ".join(sorted(set(rows.peak_source)))
    return "\n".join([f"{_machine(rows)} MiB by: {source}.", "", *_markdown(lines)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites pages in place."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Rewrite tables from results.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/cpu.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files")
    options = parser.parse_args(arguments)
    files = [path for path in complete(options.results) if not path.stem.endswith("-growth")]
    runs = [read(path) for path in files]
    for page in options.pages or PAGES:
        page.write_text(rewrite(page.read_text(encoding="utf-8"), runs), encoding="utf-8")
        print(f"{page}: rewritten from {', '.join(path.name for path in files) or 'no results'}")
    return 0


def _machine(rows: pd.DataFrame) -> str:
    first, commits = rows.iloc[0], ", ".join(f"`{commit}`" for commit in dict.fromkeys(rows.commit))
    cuda = "" if first.device_type == "cpu" else f", CUDA {first.cuda}, driver {first.driver}"
    rates = [f" Spikes: random, at a rate of {rate:g}." for rate in sorted(set(rows.spike_rate.dropna()))]
    return f"{first.device}, torch {first.torch}{cuda}, leakypar {first.leakypar} at {commits}.{''.join(rates)}"


def _markdown(lines: Sequence[dict[str, object]]) -> list[str]:
    heads = list(lines[0]) if lines else []
    left = ("shape (T, N, C, H)", "shape", "dtype", "pass", "input", "backend")
    rule = ["---" if head in left else "--:" for head in heads]
    return [f"| {' | '.join(map(str, cells))} |" for cells in (heads, rule, *(each.values() for each in lines))]


def _time(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["status"] != OK else microseconds(row["median_us"])


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


if __name__ == "__main__":
    sys.exit(main())
