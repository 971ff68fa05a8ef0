"""Holds the machine code of every CUDA kernel to what its source claims of it.

    python -m tools.schedule [FILE.cu ...]

A claim is a comment in the `.cu` file, beside the kernel:

    // schedule scan_forward_sequential<*, 4, *>: in_flight = 16, stores_narrow <= 4, divisions = 0

a pattern of the kernel's name (as `fnmatch` reads it), then measures of `MEASURES` with a bound each; a line that
begins with three spaces goes on. Claims are compared on every architecture that is compiled for, which
`TORCH_CUDA_ARCH_LIST` narrows. The run prints a row per kernel and architecture and ends with status 1 where a claim
does not hold, where a claim is about no kernel, or where a kernel has none. No GPU is needed.

What is followed is the code in the order of its addresses: a branch that is taken only sometimes counts as passed.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from os import cpu_count
from pathlib import Path
from statistics import median

from toolchain import Unavailable, architectures, find_nvcc
from tools.machine_code import Instruction, Kernel, Loop, compile_kernels, find_disassembler
from tools.ptxas_report import KERNELS

BOUNDS: dict[str, Callable[[float, float], bool]] = {"=": operator.eq, "<=": operator.le, ">=": operator.ge}


def is_load(instruction: Instruction) -> bool:
    """A load from global memory into a register."""
    return instruction.opcode in ("LDG", "LD")


def is_copy(instruction: Instruction) -> bool:
    """An asynchronous copy of 16 bytes into shared memory."""
    return instruction.opcode == "LDGSTS" and ".128" in instruction.name


def store_bytes(instruction: Instruction) -> int:
    """The width of a store to global memory; 0 for anything else."""
    if instruction.opcode not in ("STG", "ST"):
        return 0
    suffixes = instruction.name.split(".")
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[suffix] for suffix in suffixes if suffix in widths), 4)


def is_conversion(instruction: Instruction) -> bool:
    """A conversion between number types (of bfloat16 to float32 there is none: it is a shift)."""
    return instruction.opcode in ("F2F", "F2I", "I2F", "F2FP", "I2FP", "FRND") or instruction.name == "HADD2.F32"


def is_long_division(instruction: Instruction) -> bool:
    """A call of the function that divides 64-bit integers."""
    return instruction.opcode == "CALL" and re.search(r"_(div|rem)_[su]64", instruction.operands) is not None


def hot_loop(kernel: Kernel) -> Loop | None:
    """The loop that the kernel spends its time in: over slices of a product, or else over time steps. Look-back scans
    have none: their runs are straight code."""
    for loop in kernel.code.loops:
        if any(each.opcode == "HMMA" for each in loop.body):
            return loop
    walking = [loop for loop in kernel.code.loops if _has(loop, is_load, "LDGSTS") and _has(loop, store_bytes, None)]
    return max(walking, key=lambda loop: len(loop.own), default=None)


def _has(loop: Loop, test: Callable[[Instruction], object], opcode: str | None) -> bool:
    return any(test(each) or each.opcode == opcode for each in loop.body)


def issued_before_wait(
    code: Sequence[Instruction], at: int, counted: Callable[[Instruction], bool], around: bool
) -> int:
    """How many of the counted instructions issue after the one at `at` and before the first that waits for its result.

    Matrix loads come back in order: of several in a row only the last has a scoreboard.
    """
    same = (each for each in code[at:] if each.opcode == code[at].opcode)
    scoreboard = next((each.write_scoreboard for each in same if each.write_scoreboard is not None), None)
    found = 0
    for distance in range(1, len(code) if around else len(code) - at):
        each = code[(at + distance) % len(code)]
        if scoreboard in each.waits:
            return found
        found += counted(each)
    return found


def in_flight(kernel: Kernel) -> float:
    """Loads in flight when one is first waited for, that one included: of a loop the fewest, of straight code the most.
    Of asynchronous copies, the groups that may be pending after a wait, and the one that is waited for."""
    loop = hot_loop(kernel)
    code = kernel.code.main if loop is None else loop.own
    groups = [int(each.operands.split(",")[1], 0) for each in code if each.name == "DEPBAR.LE"]
    if groups and any(each.opcode == "LDGSTS" for each in code if loop is not None):
        return max(groups) + 1
    counts = [
        1 + issued_before_wait(code, at, is_load, loop is not None) for at, each in enumerate(code) if is_load(each)
    ]
    return (max if loop is None else min)(counts, default=0)


def steps(loop: Loop) -> int:
    """Time steps of one pass of a loop: its groups of asynchronous copies, or else its loads. A product's: one."""
    if any(each.opcode == "HMMA" for each in loop.own):
        return 1
    groups = sum(each.opcode == "LDGDEPBAR" for each in loop.own)
    return groups or max(1, sum(map(is_load, loop.own)))


def of_hot_loop(count: Callable[[Sequence[Instruction]], float]) -> Callable[[Kernel], float]:
    """What `count` finds in the hot loop, a step; 0 where there is none."""

    def measure(kernel: Kernel) -> float:
        loop = hot_loop(kernel)
        return 0 if loop is None else round(count(loop.own) / steps(loop), 1)

    return measure


def copy_instructions(kernel: Kernel) -> float:
    """Instructions for each asynchronous copy of 16 bytes: of the loop that copies, or of the straight code around."""
    worst = 0.0
    inside: set[int] = set()
    for loop in kernel.code.loops:
        copies = sum(map(is_copy, loop.body))
        if copies and loop.body == loop.own and not any(each.opcode in ("HMMA", "STG") for each in loop.body):
            worst = max(worst, len(loop.body) / copies)
            inside.update(each.address for each in loop.body)
    for block in kernel.code.blocks:
        copies = sum(map(is_copy, block))
        if copies and block[0].address not in inside and not any(each.opcode == "HMMA" for each in block):
            worst = max(worst, len(block) / copies)
    return round(worst, 1)


def products_meanwhile(kernel: Kernel) -> float:
    """Matrix instructions between a matrix load and the first wait for it: of the loop's loads, the median."""
    if (loop := hot_loop(kernel)) is None:
        return 0
    code = loop.own
    found = [
        issued_before_wait(code, at, lambda each: each.opcode == "HMMA", around=True)
        for at, each in enumerate(code)
        if each.opcode == "LDSM"
    ]
    return median(found) if found else 0


def polls_that_invalidate(kernel: Kernel) -> float:
    """Loops that wait for a flag and invalidate the first-level cache each time round."""
    return sum(
        any(each.name == "CCTL.IVALL" for each in loop.body)
        for loop in kernel.code.loops
        if loop.body == loop.own and any(each.opcode == "NANOSLEEP" for each in loop.body)
    )


def prologue_stalls(kernel: Kernel) -> float:
    """Stall clocks before the first load from global memory into a register."""
    code = kernel.code.main
    first = next((at for at, each in enumerate(code) if is_load(each)), 0)
    return sum(each.stall for each in code[:first])


def fold_loads(kernel: Kernel) -> float:
    """Loads in flight together where a look-back folds other blocks' maps: in the loops that neither store nor poll."""
    most = 0
    for loop in kernel.code.loops:
        polls = any(each.opcode == "NANOSLEEP" for each in loop.body)
        if loop.body != loop.own or polls or any(map(store_bytes, loop.body)):
            continue
        loads = [at for at, each in enumerate(loop.own) if is_load(each)]
        flying = (1 + issued_before_wait(loop.own, at, is_load, around=False) for at in loads)
        most = max(most, *flying) if loads else most
    return most


def of_opcode(*opcodes: str) -> Callable[[Kernel], float]:
    """How many instructions of the kernel begin so."""
    return lambda kernel: sum(each.name.startswith(opcodes) for each in kernel.code.main)


def of_stores(least: int, most: int) -> Callable[[Kernel], float]:
    """How many of the kernel's stores to global memory have such a width in bytes."""
    return lambda kernel: sum(least <= store_bytes(each) <= most for each in kernel.code.main)


MEASURES: dict[str, Callable[[Kernel], float]] = {
    "in_flight": in_flight,
    "step_instructions": of_hot_loop(len),
    "step_stalls": of_hot_loop(lambda code: sum(each.stall for each in code)),
    "step_conversions": of_hot_loop(lambda code: sum(map(is_conversion, code))),
    "step_calls": of_hot_loop(lambda code: sum(each.opcode == "CALL" and "`($" in each.operands for each in code)),
    "step_barriers": of_hot_loop(lambda code: sum(each.opcode == "BAR" for each in code)),
    "step_products": of_hot_loop(lambda code: sum(each.opcode == "HMMA" for each in code)),
    "products_meanwhile": products_meanwhile,
    "copy_instructions": copy_instructions,
    "prologue_stalls": prologue_stalls,
    "fold_loads": fold_loads,
    "stores_16": of_stores(16, 16),
    "stores_8": of_stores(8, 8),
    "stores_narrow": of_stores(1, 4),
    "divisions": lambda kernel: sum(
        each.opcode == "CALL" and re.search(r"_(div|rem)_[su]64", each.operands) is not None
        for each in kernel.code.main
    ),
    "switches": of_opcode("BRX"),
    "fences_sc": of_opcode("MEMBAR.SC"),
    "fences": of_opcode("MEMBAR"),
    "polls_that_invalidate": polls_that_invalidate,
    "registers": lambda kernel: kernel.use.registers,
    "spills": lambda kernel: kernel.use.spill_bytes,
}
"""What a claim may bound. A step is a time step of a scan's loop, or a slice of k of a product's."""


@dataclass(frozen=True)
class Claim:
    """A bound on one measure of the kernels whose names fit a pattern."""

    source: str
    pattern: str
    measure: str
    bound: str
    value: float

    def fits(self, kernel: Kernel) -> bool:
        return fnmatchcase(kernel.name, self.pattern)

    def holds(self, value: float) -> bool:
        return BOUNDS[self.bound](value, self.value)


_CLAIM = re.compile(r"^// schedule (?P<pattern>[^:]+):(?P<bounds>.*(?:\n//   .*)*)$", re.MULTILINE)
_BOUND = re.compile(r"^(?P<measure>\w+) (?P<bound>=|<=|>=) (?P<value>[\d.]+)$")


def read_claims(name: str, source: str) -> Iterator[Claim]:
    """The claims of a `.cu` file.

    Raises:
        ValueError: a claim is not understood, or bounds what nothing measures.
    """
    for line in _CLAIM.finditer(source):
        for part in re.sub(r"\n// *", " ", line["bounds"]).split(","):
            bound = _BOUND.match(part.strip())
            if bound is None or bound["measure"] not in MEASURES:
                raise ValueError(f"{name}: {part.strip()!r} bounds none of {', '.join(MEASURES)}")
            yield Claim(name, line["pattern"], bound["measure"], bound["bound"], float(bound["value"]))


def failures(kernels: Sequence[Kernel], claims: Sequence[Claim]) -> Iterator[str]:
    """What does not hold, as lines to print."""
    for claim in claims:
        about = [kernel for kernel in kernels if claim.fits(kernel)]
        if not about:
            yield f"{claim.source}: no kernel is called {claim.pattern}"
        for kernel in about:
            if not claim.holds(value := MEASURES[claim.measure](kernel)):
                yield (
                    f"{claim.source}: {kernel.name} on {kernel.architecture}: {claim.measure} is {value:g}, "
                    f"claimed {claim.bound} {claim.value:g}"
                )
    for name in sorted({kernel.name for kernel in kernels}):
        if not any(fnmatchcase(name, claim.pattern) for claim in claims):
            yield f"nothing is claimed of {name}"


def table(kernels: Sequence[Kernel]) -> str:
    """One row per kernel and architecture, one numbered column per measure."""
    cells = [[f"{measure(kernel):g}" for measure in MEASURES.values()] for kernel in kernels]
    heads = [f"{kernel.architecture} {kernel.name}" for kernel in kernels]
    keys = [str(number) for number in range(1, len(MEASURES) + 1)]
    widths = [max(map(len, column)) for column in zip(keys, *cells, strict=True)]
    left = max(map(len, heads), default=0)
    legend = [f"{key:>4}  {name}" for key, name in zip(keys, MEASURES, strict=True)]
    rows = [
        "  ".join([head.ljust(left), *(cell.rjust(width) for cell, width in zip(row, widths, strict=True))])
        for head, row in zip(["", *heads], [keys, *cells], strict=True)
    ]
    return "\n".join([*legend, "", *rows])


def main(arguments: Sequence[str]) -> int:
    """Compiles, prints the table, and compares it with the claims."""
    sources = [Path(argument) for argument in arguments] or sorted(KERNELS.glob("*.cu"))
    targets = [name.removesuffix("+PTX") for name in architectures().replace(" ", ";").split(";")]
    try:
        nvcc, nvdisasm = find_nvcc(), find_disassembler()
    except Unavailable as reason:
        print(f"schedule: {reason}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(cpu_count()) as pool:
        compiled = list(pool.map(lambda pair: compile_kernels(nvcc, nvdisasm, *pair), product(sources, targets)))
    kernels = sorted((kernel for each in compiled for kernel in each), key=lambda each: (each.name, each.architecture))
    print(table(kernels))
    claims = [claim for source in sources for claim in read_claims(source.name, source.read_text(encoding="utf-8"))]
    failed = list(failures(kernels, claims))
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    print(f"\n{len(claims)} claims about {len(kernels)} kernels: {len(failed)} do not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
