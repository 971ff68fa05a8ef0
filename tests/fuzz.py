"""Looks for odd shapes and values that some implementation gets wrong, for as long as it is told to.

    python -m tests.fuzz --seconds 600

Each round is one run of `test_any_shape.py` from a seed of its own, which is printed and repeats the round with --seed.
It ends at the first failure, or with the first round that the time is over after.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
import time
from pathlib import Path

TEST = Path(__file__).with_name("test_any_shape.py")


def round_of(seed: int, arguments: list[str]) -> int:
    """The exit status of pytest."""
    options = ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", "-q", "--exitfirst", *arguments]
    return subprocess.run([sys.executable, "-m", "pytest", str(TEST), *options]).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="begin no round after so long")
    parser.add_argument("--seed", type=int, help="run the one round of this seed")
    options, arguments = parser.parse_known_args()
    began, rounds = time.monotonic(), 0
    while rounds == 0 or (options.seed is None and time.monotonic() - began < options.seconds):
        seed = secrets.randbits(32) if options.seed is None else options.seed
        print(f"fuzz: round {rounds + 1}, seed {seed}", flush=True)
        status = round_of(seed, arguments)
        if status != 0:
            print(f"fuzz: again: {sys.executable} -m tests.fuzz --seed {seed}", file=sys.stderr)
            return status
        rounds += 1
    print(f"fuzz: {rounds} rounds in {time.monotonic() - began:.0f} s, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
