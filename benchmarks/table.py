"""``python -m benchmarks.table``: rewrites the tables of README and docs from the CSV files, and from nothing else.

A table stands between ``<!-- benchmark:cpu -->`` and ``<!-- /benchmark:cpu -->``; ``gpu`` likewise. What follows the
name chooses rows in the words of ``pandas.DataFrame.query``: ``<!-- benchmark:cpu shape == "speech" -->``. ``memory``
is the table of a training step's peak memory; ``events``, ``rates`` and ``longest`` are those of a run with
``--events``, ``--rates`` and ``--memory``, ``host`` and ``tuning`` those of ``benchmarks.host_time`` and ``tuning``.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean as gmean
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.environment import RESULTS, ROOT
from benchmarks.implementations import BASELINE, FLOOR
from benchmarks.results import CASE, OK, SKIPPED, kind_of, microseconds, read
from benchmarks.stack import LIMIT

OURS, RECOMPUTE, DENSE, EVENTS = (f"leakypar fused ({plan})" for plan in ("auto", "recompute", "dense", "events"))
SNNTORCH = "snntorch LeakyParallel"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ["cpu", "events", "memory", "layer", "tuning"]))
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
RELATIVE, FASTER = "\\* computes a near relative", "A rival is faster"
NOT_MEASURED = "not yet measured"
BLOCK = re.compile(r"(<!-- (\w+):(cpu|gpu)(.*?) -->\n).*?(<!-- /\2:\3 -->)", re.DOTALL)
MARKER = re.compile(r"<!-- /?\w+:(?:cpu|gpu)")


def rewrite(text: str, runs: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """Replaces what stands between the markers of each block of a page by tables, one for each run of its kind.

    Raises:
        ValueError: If a marker of ``text`` is not one of a pair.
    """

    def content(block: re.Match[str]) -> str:
        begin, name, device, query, end = block.groups()
        kind, table = TABLES[name]
        chosen = [run[run.device_type == DEVICES[device]] for run_kind, run in runs if run_kind == kind]
        chosen = [rows.query(query.strip()) if query.strip() else rows for rows in chosen]
        tables = [table(rows) for rows in chosen if not rows.empty]
        return "\n\n".join([begin.rstrip(), *(tables or [NOT_MEASURED]), end])

    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ValueError("page: expected each <!-- benchmark:... --> and its like to be one of a pair")
    return BLOCK.sub(content, text)


def speed(rows: pd.DataFrame) -> str:
    """One run as Markdown: where it was made, a line for each case, and what was left out."""
    lines: list[dict[str, object]] = []
    below: dict[str, list[str]] = {}
    beside_rivals = False
    for _, case in rows.groupby(["shape", "dtype", "pass", "input", "threads"], sort=False):
        named = {row["label"]: row for row in case.to_dict("records")}
        if OURS not in named:
            continue
        ours = named[OURS]
        if ours["status"] != OK:
            what = f"{ours['shape']} {ours['dtype']} {ours['input']} {ours['pass']} ({ours['note']})"
            below.setdefault("Not run" if ours["status"] == SKIPPED else "Failed", []).append(what)
            continue
        rivals = case[(case.label != FLOOR) & (case.backend == "") & (case.status == OK)]
        beside_rivals |= not rivals.empty
        for rival in rivals[rivals.median_us < ours["median_us"]].to_dict("records"):
            where = " ".join(str(ours[name]) for name in CASE[:-1])
            what = f"{where}, threads {ours['threads']}: {rival['label']} {_time(rival)}"
            below.setdefault(FASTER, []).append(what)
        others = rivals[~rivals.label.isin([BASELINE, SNNTORCH])]
        best = None if others.empty else named[others.loc[others.median_us.idxmin(), "label"]]
        near = best is not None and best["function"] != "same"
        if best and near and (what := f"{best['label']}: {best['function']}") not in below.get(RELATIVE, []):
            below.setdefault(RELATIVE, []).append(what)
        spread = _number(ours["time_over_linear_spread"], " ± {:.2f}")
        lines.append(
            {
                "shape (T, N, C, H)": f"{ours['shape']} ({ours['T']}, {ours['N']}, {ours['C']}, {ours['H']})",
                "dtype": f"{ours['dtype']} (TF32)" if ours["tf32"] == "on" else ours["dtype"],
                "pass": ours["pass"],
                "input": _number(100 * ours["spike_rate"], "{:g}% spikes") or ours["input"],
                "threads": ours["threads"],
                "backend": ours["backend"],
                "leakypar": f"{_time(ours)} ± {microseconds(ours['spread_us'])}",
                "over nn.RNN": _number(ours["speedup_over_rnn"], "{:.2f}×"),
                "of nn.Linear": _number(ours["time_over_linear"], "{:.2f}×") + spread,
                "of bound": _number(ours["share_of_bound"], "{:.0%}"),
                "nn.RNN": _time(named.get(BASELINE)),
                "snntorch": _time(named.get(SNNTORCH)),
                "best other": f"{_time(best)} {best['label']}{'*' * near}" if best else "",
                "nn.Linear": _time(named.get(FLOOR)),
            }
        )
    # What is the same in every line is said once.
    same = [
        head for head in ("dtype", "pass", "input", "threads", "backend") if len({line[head] for line in lines}) == 1
    ]
    said = "".join(f", {head} {lines[0][head]}" for head in same)
    lines = [{head: cell for head, cell in line.items() if head not in same} for line in lines]
    text = [f"{_machine(rows)[:-1]}{said}. Medians ± the median absolute deviation.", "", *_markdown(lines)]
    ours = rows[(rows.label == OURS) & (rows.status == OK) & rows.time_over_linear.notna()]
    means = [
        f"{' '.join(key)}, threads {threads}: {gmean(found):.2f} (at most {max(found):.2f})"
        for (*key, threads), found in ours.groupby(["dtype", "pass", "input", "threads"], sort=False).time_over_linear
    ]
    text += ["", f"Of nn.Linear, geometric means: {'; '.join(means)}."] if means else []
    if beside_rivals and FASTER not in below:
        text += ["", "No rival that was timed is faster than leakypar in any of these rows."]
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


def events(rows: pd.DataFrame) -> str:
    """Ours as a share of nn.Linear doing the same, by shape and number of threads, for each input and pass."""
    ours = rows[(rows.label == OURS) & (rows.status == OK)]
    shares = ours.pivot_table("time_over_linear", ["threads", "shape"], ["input", "pass"], sort=False)
    lines: list[dict[str, object]] = []
    for threads, same in shares.groupby(level="threads", sort=False):
        named = [*((shape, values) for (_, shape), values in same.iterrows()), ("geometric mean", same.agg(gmean))]
        for shape, values in named:
            cells = {f"{kind} {pass_}": f"{share:.2f}" for (kind, pass_), share in values.items()}
            lines.append({"shape": shape, "threads": threads, **cells})
    return "\n".join([f"{_machine(rows)} Time over that of nn.Linear.", "", *_markdown(lines)])


def rates(rows: pd.DataFrame) -> str:
    """Where events meet the dense product, and ours over it at a rate of 5% and at most."""
    lines: list[dict[str, object]] = []
    for (shape, threads, pass_), case in rows.groupby(["shape", "threads", "pass"], sort=False):
        meet, over = crossing(case), _over_dense(case)
        line = {"shape": shape, "threads": threads, "pass": pass_, "events meet dense at": _number(meet, "{:.0f}%")}
        for label, head in ((OURS, "default / dense"), (RECOMPUTE, "recompute / dense")):
            found = over.get(label, pd.Series(dtype=float))
            line |= {f"{head}, at 5%": _number(found.get(5.0), "{:.2f}"), "at most": _number(found.max(), "{:.2f}")}
            line[f"{head}, at most"] = line.pop("at most")
        lines.append(line)
    return "\n".join([_machine(rows), "", *_markdown(lines)])


def _over_dense(case: pd.DataFrame) -> pd.DataFrame:
    """Times over the dense product's, a row for each rate in percent, a column for each implementation."""
    rate = (100 * case.spike_rate).round(6)
    times = case.assign(rate=rate).pivot_table("time_over_linear", "rate", "label")
    return times.div(times[DENSE], axis=0)


def crossing(case: pd.DataFrame) -> float | None:
    """The rate in percent from which events take longer than the dense product, between two measured ones, or None.

    Time over rate is taken for a power between the two.
    """
    gain = np.log(_over_dense(case)[EVENTS])
    for low, high in zip(gain.index, gain.index[1:], strict=False):
        if gain[low] < 0 <= gain[high]:
            return float(low * (high / low) ** (gain[low] / (gain[low] - gain[high])))
    return None


def longest(rows: pd.DataFrame) -> str:
    """The longest sequence that trains in :data:`LIMIT` bytes, and memory and time beside snntorch's and ours."""
    found = rows[rows.status == OK]
    GiB = found.pivot_table("peak_bytes", "T", "label", sort=False).sort_index() / 2**30
    times = found.pivot_table("median_us", "T", "label")
    curves = {name: GiB[name].dropna() for name in GiB}
    limit, most = LIMIT / 2**30, {name: _reaches(curve, LIMIT / 2**30) for name, curve in curves.items()}
    theirs, lines = most.get(SNNTORCH, math.nan), []
    there = GiB.get(SNNTORCH, GiB).last_valid_index() if math.isnan(theirs) else theirs
    at = {name: np.interp(there, curve.index, curve, right=math.nan) for name, curve in curves.items()}
    for name, T in most.items():
        step = (times[name] / times[DENSE]).median() if DENSE in times else math.nan
        longest_T = _number(T, "{:.0f}") or f"> {curves[name].index[-1]}"
        line = {"implementation": name, f"longest T in {limit:g} GiB": longest_T}
        line |= {
            "over snntorch's": _number(T / theirs, "{:.1f}×"),
            f"GiB at T = {there:.0f}": _number(at[name], "{:.2f}"),
        }
        line["snntorch's over it"] = _number(at.get(SNNTORCH, math.nan) / at[name], "{:.1f}×")
        line["time over dense"] = _number(step, "{:.2f}")
        lines.append(line | {"at the longest": found[found.label == name].note.iloc[-1]})
    return "\n".join([f"{_machine(rows)} GiB by: {found.peak_source.iloc[0]}.", "", *_markdown(lines)])


def _reaches(curve: pd.Series, value: float) -> float:
    """The index at which a curve first reaches a value, on a line between two points of it; NaN if it does not."""
    above = next((place for place, each in enumerate(curve) if each >= value), 0)
    if not above:
        return math.nan
    (low, high), (before, after) = curve.index[above - 1 : above + 1], curve.iloc[above - 1 : above + 1]
    return float(low + (high - low) * (value - before) / (after - before))


def host(rows: pd.DataFrame) -> str:
    """The time of nn.Linear, and the others' over it, for layers so small that they compute nothing."""
    lines: list[dict[str, object]] = []
    for (pass_, shape, T, N, C, H), case in rows.groupby(["pass", "shape", "T", "N", "C", "H"], sort=False):
        named = {row["label"]: row for row in case.to_dict("records")}
        line = {"call": pass_, "of": f"{shape}, ({T}, {N}, {C}, {H})", FLOOR: _time(named[FLOOR])}
        for name in (BASELINE, "leakypar"):
            over, spread = (named.get(name, {}).get(f"time_over_linear{end}") for end in ("", "_spread"))
            line[name] = f"{over:.2f} ± {spread:.2f}" if over else ""
        lines.append(line)
    return "\n".join([f"{_machine(rows)} One thread.", "", *_markdown(lines)])


def tuning(rows: pd.DataFrame) -> str:
    """How often the model's choice is the best that was measured, and what is gained where it is not."""
    lines: list[dict[str, object]] = []
    for dtype, same in rows.groupby(["shape", "dtype", "pass"], sort=False).head(1).groupby("dtype", sort=False):
        beyond = sorted(same.gain[same.gain > 1.05], reverse=True)
        line = {"dtype": dtype, "directions": len(same), "model's choice kept": int(same.is_model.sum())}
        line["gains beyond 5%"] = ", ".join(f"{gain:.2f}" for gain in beyond)
        lines.append(line | {"geometric mean of the gains": f"{gmean(same.gain):.3f}"})
    return "\n".join([f"{_machine(rows)} Threads: {rows.threads.iloc[0]}.", "", *_markdown(lines)])


TABLES = {
    "benchmark": ("", speed),
    "memory": ("", memory),
    "events": ("events", events),
    "rates": ("rates", rates),
    "longest": ("memory", longest),
    "host": ("host", host),
    "tuning": ("tuning", tuning),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites pages in place."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Rewrite tables from results.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: those that have tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files")
    options = parser.parse_args(arguments)
    shown = {kind for kind, _ in TABLES.values()}
    files = [path for path in sorted(options.results.glob("*.csv")) if kind_of(path) in shown]
    runs = [(kind_of(path), read(path)) for path in files]
    for page in options.pages or PAGES:
        page.write_text(rewrite(page.read_text(encoding="utf-8"), runs), encoding="utf-8")
        print(f"{page}: rewritten from {', '.join(path.name for path in files) or 'no results'}")
    return 0


def _machine(rows: pd.DataFrame) -> str:
    first, commits = rows.iloc[0], ", ".join(f"`{commit}`" for commit in dict.fromkeys(rows.commit))
    cuda = "" if first.device_type == "cpu" else f", CUDA {first.cuda}, driver {first.driver}"
    return f"{first.device}, torch {first.torch}{cuda}, leakypar {first.leakypar} at {commits}."


def _markdown(lines: Sequence[dict[str, object]]) -> list[str]:
    heads = list(lines[0]) if lines else []
    left = ("shape (T, N, C, H)", "shape", "dtype", "pass", "input", "backend", "implementation", "call", "of")
    rule = ["---" if head in left else "--:" for head in heads]
    return [f"| {' | '.join(map(str, cells))} |" for cells in (heads, rule, *(each.values() for each in lines))]


def _time(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["status"] != OK else microseconds(row["median_us"])


def _number(value: float | None, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


if __name__ == "__main__":
    sys.exit(main())
