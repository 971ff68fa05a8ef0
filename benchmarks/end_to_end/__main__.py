"""``python -m benchmarks.end_to_end``: time to accuracy of each implementation; writes a CSV, prints tables.

With its defaults it takes a few minutes on two idle CPU cores: two minutes of one core's time, when that was counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.cpu import write
from benchmarks.end_to_end.race import race
from benchmarks.end_to_end.results import Row, row, show
from benchmarks.end_to_end.runner import FAILED, Runner
from benchmarks.end_to_end.tasks import TASKS
from benchmarks.environment import ROOT, describe, set_tf32, stable_name
from examples.digits.network import IMPLEMENTATIONS, implementation, unavailable

RESULTS = ROOT / "benchmarks" / "results"
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the races.

    Returns:
        0, or 1 when an implementation failed. One that did not reach the target has not failed: its row says so.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda, but torch finds no usable GPU")
    names = list(dict.fromkeys(options.implementations))
    for lack in filter(None, map(unavailable, names)):
        parser.error(f"--implementations: {lack}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    set_tf32(options.tf32)
    output = options.output or RESULTS / f"{stable_name(device)}-end-to-end{_suffix(options)}.csv"
    output.parent.mkdir(parents=True, exist_ok=True)

    environment = describe(device)
    tf32 = {True: "on", False: "off"}[options.tf32] if device.type == "cuda" else "n/a"
    implementations = [implementation(name, device) for name in names]
    rows: list[Row] = []
    for name in TASKS if options.task == "all" else [options.task]:
        print(f"{name}: drawing the data", file=sys.stderr)
        task = TASKS[name](SEED, device)
        silent = True if options.no_progress else None  # None: where the output is no terminal
        with tqdm(total=task.most_steps, desc=name, unit="step", disable=silent, file=sys.stderr) as bar:

            def report(runners: Sequence[Runner], bar: tqdm = bar, round_steps: int = task.round_steps) -> None:
                bar.set_postfix({runner.implementation.name: f"{runner.accuracy or 0:.0%}" for runner in runners})
                bar.update(round_steps)

            runners = race(task, implementations, device, seed=SEED, budget=options.seconds, report=report)
        rows += [row(task, runner, device) for runner in runners]
        # After each task: a run that is cut short leaves what it has measured.
        write(output, [found.record(environment, snntorch=_snntorch(), tf32=tf32) for found in rows])

    # Wide enough for a row that says why it was skipped, where the output is a file and has no width of its own.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    show(rows, console)
    console.print(
        f"{environment.device}, {environment.threads} threads, torch {environment.torch}, "
        f"leakypar {environment.leakypar} at {environment.commit}; training steps alone are timed"
    )
    console.print(f"written to {output}", soft_wrap=True)
    return 1 if any(found.status == FAILED for found in rows) else 0


def _parser() -> argparse.ArgumentParser:
    def positive(text: str) -> float:
        value = float(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"got {text}, expected more than 0")
        return value

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
        return int(text)

    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__.partition(": ")[2])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--task", choices=(*TASKS, "all"), default="all")
    add(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS,
        default=IMPLEMENTATIONS,
        metavar="NAME",
        help=f"of {', '.join(IMPLEMENTATIONS)}; default: all",
    )
    add("--seconds", type=positive, default=90.0, help="of training for each implementation and task; default: 90")
    add("--threads", type=whole, help="CPU threads; default: torch's own choice")
    add("--tf32", action=argparse.BooleanOptionalAction, default=True, help="on a GPU; default: on")
    add("--no-progress", action="store_true", help="no progress bar; a log file never has one")
    add("--output", type=Path, metavar="CSV", help="default: benchmarks/results/<device>-end-to-end.csv")
    return parser


def _snntorch() -> str:
    try:
        return version("snntorch")
    except PackageNotFoundError:
        return "none"


def _suffix(options: argparse.Namespace) -> str:
    """Keeps a run of less than everything from overwriting one of everything."""
    return "" if options.task == "all" and set(options.implementations) == set(IMPLEMENTATIONS) else "-partial"


if __name__ == "__main__":
    sys.exit(main())
