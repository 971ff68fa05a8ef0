"""``python -m benchmarks``: check, time, write a CSV, print tables."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.bounds import PASSES
from benchmarks.environment import ROOT, Environment, describe, set_tf32, stable_name
from benchmarks.implementations import Implementation, all_implementations
from benchmarks.problem import DTYPES, INPUTS
from benchmarks.results import FAILED, REFUSED, Row, Writer, finished, read_rows
from benchmarks.runner import Settings, run
from benchmarks.shapes import GROWTH, QUICK, SHAPES, Shape, parse_shapes
from benchmarks.show import show

RESULTS = ROOT / "benchmarks" / "results"
BUSY = 0.5  # of the processors
SHAPES_HELP = f"{','.join(SHAPES)}, growth-T, growth-H, or sizes as TxNxCxH"
IMPLEMENTATIONS_HELP = "such as 'nn.RNN,leakypar fused (lane)'; default: all but 'leakypar rnn'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark.

    Returns:
        0, or 1 when an implementation gave wrong results or failed.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no usable GPU")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    set_tf32(options.tf32)
    brief = options.quick or options.growth is not None
    settings = Settings(
        device=device,
        shapes=options.shapes or _default_shapes(options),
        dtypes=options.dtype or (["float32"] if options.growth else ["float32", "bfloat16"]),
        passes=options.passes or list(PASSES),
        inputs=options.inputs or (["spikes"] if options.quick or options.growth else list(INPUTS)),
        implementations=_select(parser, options.implementations, device),
        tf32=options.tf32,
        learn_decay=options.learn_decay,
        rounds=options.rounds or (10 if brief else 30),
        case_seconds=options.case_seconds or (2.0 if brief else 8.0),
        call_limit=options.call_limit or (1.0 if brief else 4.0),
        time_limit=options.time_limit,
    )
    output = options.output or RESULTS / f"{stable_name(device)}{_suffix(options)}.csv"

    environment = describe(device)
    rows: list[Row] = _resumed(parser, output, environment) if options.resume else []
    settings = dataclasses.replace(
        settings, done=frozenset((row.shape, row.dtype, row.input, row.pass_) for row in rows)
    )
    processors = os.cpu_count() or 1
    if environment.load > BUSY * processors:
        load = f"a load of {environment.load:.1f} on {processors} processors"
        print(f"warning: {load}; times will be those of a busy machine", file=sys.stderr)

    writer = Writer(output)
    writer.write(rows)
    cases = len(settings.shapes) * len(settings.dtypes) * len(settings.inputs) * len(settings.passes)
    with tqdm(
        total=cases - len(settings.done), unit="case", disable=True if options.no_progress else None, file=sys.stderr
    ) as bar:
        bar.set_description("measuring the ceilings")
        for case in run(settings, environment, bar.set_description):
            writer.write(case)
            rows += case
            bar.update()
        bar.set_description("done")
    # Wide enough for a row that says why it was skipped, where the output is a file and has no width of its own.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    show(rows, console)
    console.print(f"written to {output}", soft_wrap=True)

    wrong = [row for row in rows if row.status in (FAILED, REFUSED)]
    for row in wrong:
        print(
            f"{row.status}: {row.label}, {row.shape} {row.dtype} {row.input} {row.pass_}: {row.note}", file=sys.stderr
        )
    return 1 if wrong else 0


def _resumed(parser: argparse.ArgumentParser, output: Path, environment: Environment) -> list[Row]:
    """What a run that was cut short has finished. Its commit may be another: every row says its own."""
    if not output.exists():
        return []
    rows = finished(read_rows(output))
    for row in rows:
        for name, now in vars(environment).items():
            if name not in ("load", "commit") and str(getattr(row, name)) != str(now):
                parser.error(f"--resume: {output} has {name} {getattr(row, name)}, expected {now} as here and now")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])

    def names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
        def split(text: str) -> list[str]:
            found = text.split(",")
            for name in found:
                if name not in allowed:
                    raise argparse.ArgumentTypeError(f"got {name!r}, expected some of {','.join(allowed)}")
            return found

        return split

    def shapes(text: str) -> list[Shape]:
        try:
            return parse_shapes(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
        def parse(text: str) -> float:
            value = kind(text)
            if not value > 0:
                raise argparse.ArgumentTypeError(f"got {text}, expected more than 0")
            return value

        return parse

    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", type=names(list(DTYPES)), metavar="NAMES", help="default: float32,bfloat16")
    add("--shapes", type=shapes, metavar="NAMES", help=f"of {SHAPES_HELP}; default: all that have a name")
    add("--growth", nargs="?", const="all", choices=("all", *GROWTH), help="how cost grows with T, with H, or both")
    add("--passes", type=names(PASSES), metavar="NAMES", help="default: forward,training")
    add("--inputs", type=names(INPUTS), metavar="NAMES", help="default: spikes,normal")
    add("--implementations", metavar="NAMES", help=IMPLEMENTATIONS_HELP)
    add("--rounds", type=positive(int), help="timed calls of each implementation; default: 30")
    add("--quick", action="store_true", help=f"{', '.join(QUICK)} on spikes, 10 rounds, 2 seconds a case")
    add("--call-limit", type=positive(float), metavar="SECONDS", help="drop what takes longer for a call; default: 4")
    add("--case-seconds", type=positive(float), metavar="SECONDS", help="fewer rounds than take longer; default: 8")
    add("--time-limit", type=positive(float), metavar="SECONDS", default=float("inf"), help="start no case after this")
    add("--resume", action="store_true", help="go on with the output of a run that its time limit cut short")
    add("--threads", type=positive(int), help="CPU threads; default: torch's own choice")
    add("--learn-decay", action="store_true", help="also train the decay, which snntorch does not by default")
    add("--tf32", action=argparse.BooleanOptionalAction, default=True, help="for float32 on a GPU; default: on")
    add("--no-progress", action="store_true", help="no progress bar; a log file never has one")
    add("--output", type=Path, metavar="CSV", help="default: benchmarks/results/<device>.csv")
    return parser


def _select(parser: argparse.ArgumentParser, text: str | None, device: torch.device) -> list[Implementation]:
    """The implementations of those names (all their plans) or labels, such as ``leakypar fused (lane)``."""
    known = [implementation for implementation in all_implementations() if implementation.applies(device)]
    if text is None:
        return [implementation for implementation in known if not implementation.optional]
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if not any(name in (implementation.name, implementation.label) for implementation in known):
            labels = ", ".join(implementation.label for implementation in known)
            parser.error(f"--implementations: got {name!r}, expected some of: {labels}")
    return [implementation for implementation in known if {implementation.name, implementation.label} & set(wanted)]


def _default_shapes(options: argparse.Namespace) -> list[Shape]:
    if options.growth is None:
        return [SHAPES[name] for name in (QUICK if options.quick else SHAPES)]
    chosen = [shape for size, family in GROWTH.items() if options.growth in (size, "all") for shape in family]
    # The smallest first: a run that is cut short lacks the largest of each family, and none a whole family.
    return sorted(chosen, key=lambda shape: shape.rows * shape.C * shape.H)


def _suffix(options: argparse.Namespace) -> str:
    """Keeps a run of less than everything from overwriting the results that the README's tables are made of."""
    if options.quick:
        return "-quick"
    chosen = (options.shapes, options.dtype, options.passes, options.inputs, options.implementations)
    partial = any(choice is not None for choice in chosen) or options.learn_decay
    if options.growth is not None:
        return "-growth-partial" if partial or options.growth != "all" else "-growth"
    return "-partial" if partial else ""


if __name__ == "__main__":
    sys.exit(main())
