"""``python -m benchmarks``: check, time, write a CSV, print what was found as it comes. Needs torch alone."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.environment import RESULTS, describe, set_tf32
from benchmarks.implementations import Implementation, all_implementations
from benchmarks.results import CASE, FAILED, OK, REFUSED, Row, Writer, finished, label, microseconds
from benchmarks.runner import Settings, run
from benchmarks.shapes import GROWTH, NAMED, QUICK, Shape, parse_shapes
from leakypar.benchmark import PASSES
from leakypar.measuring import DTYPES, INPUTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 0, or 1 when an implementation gave wrong results or failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    device, all_threads, growth = torch.device(options.device), torch.get_num_threads(), options.growth is not None
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no usable GPU")
    set_tf32(options.tf32)
    environment, brief = describe(device), options.quick or growth
    stem = "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", environment.device.lower()).strip("-")
    output = options.output or RESULTS / f"{stem}{_suffix(options)}.csv"
    rows = finished(output) if options.resume and output.exists() else []
    for row in rows:  # the commit may be another: every row says its own
        for name, now in vars(environment).items():
            if name not in ("load", "commit") and row.get(name) != str(now):
                parser.error(f"--resume: {output} has {name} {row.get(name)}, expected {now} as here and now")
    settings = Settings(
        device=device,
        shapes=options.shapes or _default_shapes(options),
        dtypes=options.dtypes or ["float32"] + ["bfloat16"] * (not growth),
        passes=options.passes,
        inputs=options.inputs or (["spikes"] if brief else INPUTS),
        threads=options.threads or ([all_threads] if brief or device.type == "cuda" else sorted({1, all_threads})),
        implementations=_select(parser, options.implementations, device),
        tf32=options.tf32,
        learn_decay=options.learn_decay,
        rounds=options.rounds or (10 if brief else 30),
        case_seconds=options.case_seconds or (2.0 if brief else 8.0),
        call_limit=options.call_limit or (1.0 if brief else 4.0),
        time_limit=options.time_limit,
        memory=options.memory,
        done=frozenset(tuple(row[name] for name in CASE) for row in rows),
    )
    if environment.load > 0.5 * (os.cpu_count() or 1):
        print(f"warning: a load of {environment.load:.1f}; times will be those of a busy machine", file=sys.stderr)
    writer = Writer(output)
    writer.write(rows)
    try:
        for case in run(settings, environment, lambda name: print(f"\n{name}", flush=True)):
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
        return f"  {label(row):28} {row['status']}: {row['note']}"
    memory = row["peak_bytes"] and row["peak_bytes"] / 2**20
    ratios = {"× nn.RNN": row["speedup_over_rnn"], "of nn.Linear": row["time_over_linear"], "MiB": memory}
    cells = [f"{value:8.2f} {unit}" for unit, value in ratios.items() if value is not None]
    time = f"{microseconds(row['median_us']):>8} ± {microseconds(row['spread_us'])}"
    cells.append(f"{row['share_of_bound']:4.0%} of bound  {row['note']}".rstrip())
    return f"  {label(row):28} {time:20} {' '.join(cells)}"


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

    def positive(text: str) -> float:
        if not float(text) > 0:
            raise ValueError(f"got {text}, expected more than 0")
        return float(text)

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])
    add, seconds = parser.add_argument, {"type": refusing(positive), "metavar": "SECONDS"}
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtypes", "--dtype", type=names(list(DTYPES)), metavar="NAMES", help="default: float32,bfloat16")
    add("--shapes", type=refusing(parse_shapes), help=f"of {','.join(NAMED)}, growth-T, growth-H, or TxNxCxH")
    add("--growth", nargs="?", const="all", choices=("all", *GROWTH), help="how cost grows with T, with H, or both")
    add("--passes", type=names(PASSES), metavar="NAMES", default=PASSES, help="default: forward,training")
    add("--inputs", type=names(INPUTS), metavar="NAMES", help="default: spikes,dense")
    add("--implementations", metavar="NAMES", help="such as 'nn.RNN,leakypar fused'; default: all but 'leakypar rnn'")
    counts = refusing(lambda text: [int(positive(count)) for count in text.split(",")])
    add("--threads", type=counts, help="numbers of CPU threads, such as 1,2; default: one, and torch's own choice")
    add("--rounds", type=refusing(lambda text: int(positive(text))), help="timed calls of each; default: 30")
    add("--quick", action="store_true", help=f"{', '.join(QUICK)} on spikes, 10 rounds, 2 seconds a case")
    add("--call-limit", help="drop what takes longer for a call; default: 4", **seconds)  # type: ignore[arg-type]
    add("--case-seconds", help="fewer rounds than take longer; default: 8", **seconds)  # type: ignore[arg-type]
    add("--time-limit", help="start no case after this", default=float("inf"), **seconds)  # type: ignore[arg-type]
    add("--resume", action="store_true", help="go on with the output of a run that its time limit cut short")
    add("--learn-decay", action="store_true", help="also train the decay, which snntorch does not by default")
    add("--tf32", action=argparse.BooleanOptionalAction, default=True, help="for float32 on a GPU; default: on")
    add("--memory", action=argparse.BooleanOptionalAction, default=True, help="peak memory; default: on")
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
    return [found for found in known if {found.name, found.label} & wanted]


def _default_shapes(options: argparse.Namespace) -> list[Shape]:
    if options.growth is None:
        return [NAMED[name] for name in (QUICK if options.quick else NAMED)]
    chosen = [shape for size, family in GROWTH.items() if options.growth in (size, "all") for shape in family]
    # The smallest first: a run that is cut short lacks the largest of each family, and none a whole family.
    return sorted(chosen, key=lambda shape: shape.rows * shape.C * shape.H)


def _suffix(options: argparse.Namespace) -> str:
    """Keeps a run of less than everything from overwriting the results that the README's tables are made of."""
    chosen = options.shapes, options.dtypes, options.inputs, options.implementations
    partial = any(chosen) or options.passes is not PASSES or options.learn_decay or options.growth in GROWTH
    return "-quick" if options.quick else "-growth" * bool(options.growth) + "-partial" * bool(partial)


if __name__ == "__main__":
    sys.exit(main())
