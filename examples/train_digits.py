"""A spiking network of two layers, 784 -> 128 -> 10, learns handwritten digits from their spikes.

It is trained once per implementation of the layer (leakypar, nn.RNN, snntorch), batch by batch in turns, from the same
weights, on the same spikes in the same order. At the end: a table of accuracy, time and memory, and a picture of what
one digit does in the trained network.

    python examples/train_digits.py
    python examples/train_digits.py --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

PACKAGES = ("matplotlib", "mlxtend", "numpy", "rich", "tqdm")


def missing_packages(packages: Sequence[str]) -> list[str]:
    """What to say of the packages that are not installed, a line each; nothing where all are."""
    lines = []
    if find_spec("leakypar") is None:
        lines.append("leakypar is not installed. In the root of its repository: pip install --no-build-isolation .")
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        lines.append(f"{', '.join(absent)} not found: pip install {' '.join(absent)}")
    return lines


def main() -> int:
    lines = missing_packages(PACKAGES)
    if lines:
        print("\n".join(lines), file=sys.stderr)
        return 1
    # Imported only here: the processes that train import this file too, and need neither the table nor the picture.
    # A script finds its neighbours by its own folder, where a type checker started in the root does not look.
    from digits.command import main as train_digits  # type: ignore[import-not-found]

    return int(train_digits())


if __name__ == "__main__":
    sys.exit(main())
