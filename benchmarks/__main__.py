"""``python -m benchmarks``: check, time, write a CSV, print what was found as it comes. Needs torch alone."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import stack
from benchmarks.environment import RESULTS, describe, set_tf32
from benchmarks.implementations import Implementation, all_implementations
from benchmarks.results import CASE, FAILED, OK, REFUSED, Row, Writer, finished, label, microseconds
from benchmarks.runner import Settings, run
from benchmarks.shapes import NAMED, QUICK, parse_shapes
from leakypar.benchmark import FIRST_LAYER, PASSES
from leakypar.measuring import DTYPES, rate_of

ALL_PASSES = ("forward", FIRST_LAYER, "training")
ALL_THREADS = str(torch.get_num_threads())
BRIEF = {"inputs": "spikes", "threads": ALL_THREADS, "rounds": "10", "case_seconds": "2", "call_limit": "1"}
LAYER_ALONE = {"threads": f"1,{ALL_THREADS}", "dtypes": "float32", "passes": ",".join(ALL_PASSES), "peak": False}
LAYER_ALONE |= {"case_seconds": "2", "rounds": "15"}
OVER_RATES = ("auto", "dense", "events", "recompute")
# What a run of each kind has for a default; the first is that of no flag. Each writes a file of its own.
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {"shapes": ",".join(NAMED), "threads": f"1,{ALL_THREADS}"},
    "quick": BRIEF | {"shapes": ",".join(QUICK)},
    "growth": BRIEF | {"shapes": "growth-T,growth-H", "dtypes": "float32"},
    "events": LAYER_ALONE | {"inputs": "5%,20%", "implementations": "nn.Linear,leakypar fused (auto)"},
    "rates": LAYER_ALONE
    | {
        "shapes": "onm,100x32x700x512",
        "inputs": "0.1%,0.3%,1%,3%,5%,10%,20%,30%,40%,50%,100%",
        "implementations": ",".join(["nn.Linear", *(f"leakypar fused ({plan})" for plan in OVER_RATES)]),
    },
    "memory": {
        "threads": ALL_THREADS,
        "implementations": ",".join(stack.MEASURED),
        "rounds": "5",
        "case_seconds": "3",
        "call_limit": "15",
        "time_limit": "660",
    },
}
# The options that are settings of the same name.
SETTINGS = (
    *("shapes", "dtypes", "passes", "inputs", "tf32", "learn_decay"),
    *("rounds", "case_seconds", "call_limit", "time_limit", "peak"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0, or 1 when an implementation gave wrong results or failed."""
    parser = _parser()
    parser.set_defaults(**DEFAULTS[parser.parse_args(arguments).kind])
    options, whole = parser.parse_args(arguments), parser.parse_args([])
    device, all_threads = torch.device(options.device), torch.get_num_threads()
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no usable GPU")
    if device.type == "cuda" and options.kind == "memory":
        parser.error("--memory: got --device cuda, expected cpu, where memory is that of a fresh process")
    set_tf32(options.tf32)
    environment = describe(device)
    output = options.output or RESULTS / f"{_stem(environment.device, device)}{_suffix(options, whole)}.csv"
    rows = finished(output) if options.resume and output.exists() else []
    for row in rows:  # the commit may be another: every row says its own
        for name, now in vars(environment).items():
            if name not in ("load", "commit") and row.get(name) != str(now):
                parser.error(f"--resume: {output} has {name} {row.get(name)}, expected {now} as here and now")
    if options.kind == "growth":  # the smallest first: a run that is cut short lacks the largest of each family
        options.shapes.sort(key=lambda shape: shape.rows * shape.C * shape.H)
    settings = Settings(
        device=device,
        threads=options.threads if device.type == "cpu" else [all_threads],
        implementations=_select(parser, options.implementations, device),
        done=frozenset(tuple(row[name] for name in CASE) for row in rows),
        **{name: getattr(options, name) for name in SETTINGS},
    )
    if environment.load > 0.5 * (os.cpu_count() or 1):
        print(f"warning: a load of {environment.load:.1f}; times will be those of a busy machine", file=sys.stderr)
    writer = Writer(output)
    writer.write(rows)
    cases: Iterable[list[Row]]
    if options.kind == "memory":
        cases = stack.run(settings, environment)
    else:
        cases = run(settings, environment, lambda name: print(f"\n{name}", flush=True))
    try:
        for case in cases:
            writer.write(case)
            print("\n".join(map(_line, case)), flush=True)
            rows += case
    finally:
        torch.set_num_threads(all_threads)
    print(f"\n{environment.device}, torch {environment.torch}, at {environment.commit}; written to {output}")
    wrong = [row for row in rows if row["status"] in (FAILED, REFUSED)]
    for row in wrong:
        where = " ".join(str(row[name]) for name in CASE)
        print(f"{row['status']}: {label(row)}, {where}: {row['note']}", file=sys.stderr)
    return 1 if wrong else 0


def _line(row: Row) -> str:
    """A row of a terminal's table: time, its spread, ratios, memory; or why there is none."""
    if row["status"] != OK:
        return f"  {label(row):32} {row['status']}: {row['note']}"
    ratios = {"× nn.RNN": row["speedup_over_rnn"], "of nn.Linear": row["time_over_linear"]}
    ratios |= {"MiB": row["peak_bytes"] and row["peak_bytes"] / 2**20, "of bound": row["share_of_bound"]}
    cells = [f"{value:8.2f} {unit}" for unit, value in ratios.items() if value is not None]
    time = f"{microseconds(row['median_us']):>8} ± {microseconds(row['spread_us'])}"
    return f"  {label(row):32} {time:20} {' '.join(cells)}  {row['note']}".rstrip()


def _parser() -> argparse.ArgumentParser:
    def refusing(parse: Callable[[str], object]) -> Callable[[str], object]:
        def parsed(text: str) -> object:
            try:
                return parse(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from error

        return parsed

    def names(allowed: Sequence[str]) -> Callable[[str], object]:
        def split(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(allowed):
                raise ValueError(f"got {', '.join(sorted(unknown))}, expected some of {','.join(allowed)}")
            return text.split(",")

        return refusing(split)

    def inputs(text: str) -> list[str]:
        for kind in text.split(","):
            rate_of(kind)
        return text.split(",")

    def positive(text: str) -> float:
        if not float(text) > 0:
            raise ValueError(f"got {text}, expected more than 0")
        return float(text)

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])
    kinds = parser.add_mutually_exclusive_group()
    for kind, help_ in (
        ("quick", f"{', '.join(QUICK)} on spikes, 10 rounds, 2 seconds a case"),
        ("growth", "how cost grows with T and with H"),
        ("events", "nn.Linear and ours, where an input is spikes at 5% and at 20%"),
        ("rates", "how cost goes with the rate of an input's spikes"),
        ("memory", "how the memory of a training step of four layers grows with T"),
    ):
        help_ = help_.replace("%", "%%")
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, default="", help=help_)
    add, seconds = parser.add_argument, {"type": refusing(positive), "metavar": "SECONDS"}
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtypes", "--dtype", type=names(list(DTYPES)), metavar="NAMES", default="float32,bfloat16")
    shapes = f"of {','.join(NAMED)}, growth-T, growth-H, or TxNxCxH"
    add("--shapes", type=refusing(parse_shapes), default=",".join(NAMED), help=shapes)
    add(
        "--passes",
        type=names(ALL_PASSES),
        metavar="NAMES",
        default=",".join(PASSES),
        help=f"of {', '.join(ALL_PASSES)}",
    )
    add("--inputs", type=refusing(inputs), default="spikes,dense", help="spikes (20%%), dense, rates such as 5%%")
    add("--implementations", metavar="NAMES", help="such as 'nn.RNN,leakypar fused'; default: all but optional ones")
    counts = refusing(lambda text: sorted({int(positive(count)) for count in text.split(",")}))
    add("--threads", type=counts, help="numbers of CPU threads, such as 1,2; default: one, and torch's own choice")
    add("--rounds", type=refusing(lambda text: int(positive(text))), default="30", help="timed calls of each")
    add("--call-limit", help="drop what takes longer for a call", default="4", **seconds)  # type: ignore[arg-type]
    add("--case-seconds", help="fewer rounds than take longer", default="8", **seconds)  # type: ignore[arg-type]
    add("--time-limit", help="start no case after this", default="inf", **seconds)  # type: ignore[arg-type]
    add("--resume", action="store_true", help="go on with the output of a run that its time limit cut short")
    add("--learn-decay", action="store_true", help="also train the decay, which snntorch does not by default")
    add("--tf32", action=argparse.BooleanOptionalAction, default=True, help="for float32 on a GPU; default: on")
    add("--peak", action=argparse.BooleanOptionalAction, default=True, help="peak memory of each; default: on")
    add("--output", type=Path, metavar="CSV", help="default: benchmarks/results/<device>.csv")
    return parser


def _select(parser: argparse.ArgumentParser, text: str | None, device: torch.device) -> list[Implementation]:
    """The implementations of those names (all their plans) or labels, such as ``leakypar fused (sequential)``."""
    known = [found for found in all_implementations() if found.applies(device)]
    if text is None:
        return [found for found in known if not found.optional]
    wanted = {name.strip() for name in text.split(",")}
    if unknown := wanted - {name for found in known for name in (found.name, found.label)}:
        labels = ", ".join(found.label for found in known)
        parser.error(f"--implementations: got {', '.join(sorted(unknown))}, expected some of: {labels}")
    return [found for found in known if found.label in wanted or (found.name in wanted and not found.optional)]


def _stem(name: str, device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _suffix(options: argparse.Namespace, whole: argparse.Namespace) -> str:
    """Keeps a run of less than everything from overwriting the results that the README's tables are made of."""
    narrowing = ("shapes", "dtypes", "passes", "inputs", "implementations", "learn_decay")
    partial = any(getattr(options, name) != getattr(whole, name) for name in narrowing)
    kind = f"-{options.kind}" if options.kind else ""
    return kind + "-partial" * (partial and options.kind != "quick")


if __name__ == "__main__":
    sys.exit(main())
