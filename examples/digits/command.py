"""The command line: trains each implementation, prints the table, draws the figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.backend_bases import FigureCanvasBase
from rich.console import Console

from .data import CLASSES, TEST_SHARE, Digits, load_digits, stratified_split
from .figure import draw
from .network import IMPLEMENTATIONS, unavailable
from .table import result_table
from .trace import trace
from .training import Result, Settings, train_in_turns

SAMPLES = 5000
FEWEST_SAMPLES = 5 * CLASSES  # one test digit of each class


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {text!r}")
        return int(text)

    return parse


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise argparse.ArgumentTypeError(f"torch has no device {text!r} here: {str(error).splitlines()[0]}") from error
    return text


def _picture(text: str) -> Path:
    path = Path(text)
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in kinds:
        raise argparse.ArgumentTypeError(f"expected a name that ends in one of {', '.join(kinds)}, got {text!r}")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text!r}")
    return path


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a spiking network on handwritten digits, once per implementation of its layer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=_whole(1), default=8, help="passes over the training set")
    parser.add_argument("--batch-size", type=_whole(1), default=128, help="digits per training step")
    parser.add_argument("--seed", type=_whole(0), default=0, help="of the split, the weights, the order and the spikes")
    parser.add_argument(
        "--device",
        type=_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to train, as torch names it",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=IMPLEMENTATIONS,
        default=IMPLEMENTATIONS,
        metavar="NAME",
        help=f"which to train, of {', '.join(IMPLEMENTATIONS)}",
    )
    parser.add_argument(
        "--samples",
        type=_whole(FEWEST_SAMPLES, SAMPLES),
        default=SAMPLES,
        help="digits to use, of which a fifth is held out for the test",
    )
    parser.add_argument("--output", type=_picture, default="demo.png", help="the picture")
    return parser.parse_args(arguments)


def _sets(samples: int, seed: int) -> tuple[Digits, Digits]:
    digits = load_digits()
    if samples < len(digits):
        _, chosen = stratified_split(digits.labels, samples / len(digits), seed)
        digits = digits.take(chosen)
    train_indices, test_indices = stratified_split(digits.labels, TEST_SHARE, seed)
    return digits.take(train_indices), digits.take(test_indices)


def _train_all(names: Sequence[str], settings: Settings, train_set: Digits, test_set: Digits) -> list[Result]:
    results = train_in_turns(names, settings, train_set, test_set)
    for result in results:
        if result.initial != results[0].initial:
            raise RuntimeError(
                f"{result.name} and {results[0].name} began with different weights, though their seed was the same"
            )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration. Returns the exit status."""
    chosen = options(arguments)
    console = Console()
    names = list(dict.fromkeys(chosen.implementations))
    notes = [reason for name in names if (reason := unavailable(name)) is not None]
    names = [name for name in names if unavailable(name) is None]
    if not names:
        console.print("Nothing to train:", *notes)
        return 1

    train_set, test_set = _sets(chosen.samples, chosen.seed)
    console.print(f"{len(train_set)} digits to learn, {len(test_set)} held out, on {chosen.device}.")
    settings = Settings(chosen.epochs, chosen.batch_size, chosen.seed, chosen.device)
    results = _train_all(names, settings, train_set, test_set)

    console.print()
    console.print(result_table(results))
    for note in notes + [result.note for result in results if result.note is not None]:
        console.print(f"Note: {note}", markup=False)

    seen = trace(results[0].state, test_set, chosen.seed)
    pixels, hidden, output = (f"{rate:.1%}" for rate in seen.rates)
    console.print(
        f"Spikes after training: {pixels} of the pixels, {hidden} of the hidden layer, {output} of the output."
    )
    draw(seen, results, chosen.output)
    console.print(f"Picture: {chosen.output}", soft_wrap=True, markup=False)
    return 0
