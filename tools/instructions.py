"""Counts the instructions that the CPU's kernels take, with valgrind, beside what their design predicts.

    python -m tools.instructions

A count does not depend on what else the machine does. Each is the difference between a long and a short run, over the
elements by which they differ, so that what surrounds the loops drops out. The prediction counts a vector's instructions
in the formulas at the top of `csrc/cpu/scan_forward.cpp` and `scan_backward.cpp`, one for each operation, load that no
operation absorbs, and store, and three for the loop; a vector holds 32 bytes of state (AVX2). Those of the products
with events (`csrc/cpu/events.h`) are counted for a one and 128 neurons, packing for an element.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CHANNELS = 4096
SHORT, LONG = 20, 60
# As the extension is compiled (setup.py), but without AVX-512, which valgrind does not know.
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS += ["-DLEAKYPAR_WIDEST_VECTORS=32"]


class Loop(NamedTuple):
    """A scan and the instructions that it should need for one vector.

    Attributes:
        scan: "forward" or "backward", and "+dropout" where the threshold sees the membrane through it, "+bounds"
            where there are two, "+sigmoid" or "+escape" for another surrogate than the ATan.
        dtype: of the elements.
        lanes: state values of a vector.
        instructions: predicted, for a vector.
    """

    scan: str
    dtype: str
    lanes: int
    instructions: int


# Forward: u + b, w h, their sum, the clamp (2), h - threshold, compare, select; u and w are loaded, h, spikes and
# membrane stored. Backward: v, its square scaled (2), + 1, the quotient, gradient times gain times slope (2), with
# two loads and a store; then g + r, the derivative of relu (2; of two bounds 4), w d_u, two sums and a product, with
# g, h and d_u's successor loaded and five stores.
#
# With dropout, a round of the generator is two multiplications, two shifts and four exclusive ors for four counters,
# the words of two vectors; the first two rounds lack five of these, where half is zero. The counters are 2, pairs of
# words 6, the order of elements 2, the stores 2 and the loop 3. Then a word is loaded, shifted, compared, and its
# factor selected and stored. The forward scan multiplies by it; the backward scan does so twice, in loops of their
# own.
#
# An exponential is a maximum, a multiple rounded (3), the rest of it (4), seven terms of two each, a power of two (1)
# and two products. With a sigmoid: v, p0 v, -|p0 v|, its exponential e, p0 e, 1 + e, the square, the quotient and the
# two products; with an escape rate: v, v - 1, its absolute value, a product, the exponential and three.
DROPOUT = (10 * 8 - 5 + 2 + 6 + 2 + 2 + 3) // 2 + (5 + 3)
EXPONENTIAL = 1 + 3 + 4 + 7 * 2 + 1 + 2
LOOPS = [
    Loop("forward", "float32", 8, 8 + 2 + 3 + 3),
    Loop("forward", "float64", 4, 8 + 2 + 3 + 3),
    Loop("forward+dropout", "float32", 8, (8 + 2 + 3 + 3) + DROPOUT + 1),
    Loop("forward+bounds", "float32", 8, 8 + 2 + 3 + 3),
    Loop("backward", "float32", 8, (7 + 2 + 1 + 3) + (7 + 3 + 5 + 3)),
    Loop("backward", "float64", 4, (7 + 2 + 1 + 3) + (7 + 3 + 5 + 3)),
    Loop("backward+bounds", "float32", 8, (7 + 2 + 1 + 3) + (7 + 3 + 5 + 3) + 2),
    Loop("backward+sigmoid", "float32", 8, (9 + EXPONENTIAL + 2 + 1 + 3) + (7 + 3 + 5 + 3)),
    Loop("backward+escape", "float32", 8, (7 + EXPONENTIAL + 2 + 1 + 3) + (7 + 3 + 5 + 3)),
    Loop("backward+dropout", "float32", 8, (7 + 2 + 1 + 3) + (7 + 3 + 5 + 3) + DROPOUT + 2 * (1 + 2 + 3)),
]


# A one adds 16 vectors: of weights to sums in registers, or of d_u in registers to sums in memory, which are loaded by
# the addition and stored; finding it takes a count of zeros, a bit cleared, an address (2) and the loop (2). A vector
# of packed elements takes a comparison with zero and one with the value, each with a shift or a mask, and both narrowed
# to bytes (2 of 4); then the bytes are gathered to bits, 5 for 8 of them. Unpacking masks a vector of copies of a word,
# compares it with zero, masks the value and stores it.
EVENTS = {"pack": (5 + 2) / 8 + 5 / 8, "unpack": 4 / 8, "project": 16 + 6, "gradient": 2 * 16 + 6}
ROWS, FEATURES, APART = 64, 1024, 16


def build(folder: Path, name: str) -> Path:
    """Compiles the kernels and a program of this folder that runs them; returns the program."""
    program = folder / name
    sources = [ROOT / "tools" / f"{name}.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    compiler = shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: c++ is not on the path")
    subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", program], check=True)
    return program


def collected(program: Path, *arguments: object) -> int:
    """Instructions of a whole run of the program."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program)]
    run = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if found is None:
        raise ValueError(f"valgrind printed no count: {run.stderr}")
    return int(found[1])


def counted(program: Path, loop: Loop) -> float:
    """Instructions an element: more repetitions of more steps, less what is not repeated, less what no step adds."""

    def repeated(steps: int) -> int:
        once, twice = (collected(program, loop.scan, loop.dtype, steps, CHANNELS, repeats) for repeats in (1, 2))
        return twice - once

    return (repeated(LONG) - repeated(SHORT)) / ((LONG - SHORT) * CHANNELS)


def main() -> int:
    """Prints the table."""
    if shutil.which("valgrind") is None:
        print("valgrind is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), "scan_loops")
        print("scan              element    counted  predicted   instructions an element")
        for loop in LOOPS:
            print(f"{loop.scan:17} {loop.dtype:9} {counted(program, loop):8.2f} {loop.instructions / loop.lanes:10.2f}")
        program = build(Path(folder), "event_loops")
        print("events    counted  predicted   instructions an element packed or unpacked, or a one beside 128 neurons")
        for name, predicted in EVENTS.items():
            once, twice = (collected(program, name, ROWS, repeats) for repeats in (1, 2))
            each = ROWS * FEATURES / (1 if name.endswith("pack") else APART)
            print(f"{name:9} {(twice - once) / each:8.2f} {predicted:10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
