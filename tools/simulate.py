"""Runs the decoded loops of the kernels on a model of one multiprocessor (`tools.chip`), for the benchmark's shapes.

    python -m tools.simulate

Prints clocks a time step of the sequential scans beside what their share of the memory's bandwidth allows, and clocks a
tile of `project_scan`, at the occupancy that registers and shared memory leave. **Simulated, not measured.**

What is run is straight code: of the loop that a kernel spends its time in, every block but those that call a function
(slow paths of a division), copies that are narrower than 16 bytes, waits that leave fewer copies in flight than
another of the same loop, and loops inside it that draw dropout. Both outputs
of a forward are written. Launches, the chain of a look-back and the caller's side are not in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import cpu_count

from benchmarks.shapes import SHAPES
from toolchain import Unavailable, find_nvcc
from tools.chip import H100, OTHERWISE, Chip, clocks, width
from tools.machine_code import Instruction, Kernel, Loop, compile_kernels, find_disassembler
from tools.ptxas_report import KERNELS
from tools.schedule import hot_loop, in_flight, is_copy, steps, store_bytes

ARCHITECTURE = "9.0"
WARPS = 4  # of a block of the sequential scans, and of project_scan
DTYPES = {"bfloat16": 2, "float": 4}


def groups_left(wait: Instruction) -> int:
    """How many groups of copies may be in flight after a wait."""
    return int(wait.operands.split(",")[-1], 0)


def copied(each: Instruction) -> int:
    """The bytes of an asynchronous copy; 0 for anything else."""
    return width(each) if each.opcode == "LDGSTS" else 0


def conditional(each: Instruction) -> bool:
    """Whether a copy fills in zeros where a predicate, its last operand, says so."""
    return re.search(r", !?P\d$", each.operands) is not None


def straight(kernel: Kernel, code: Sequence[Instruction], copy_bytes: int = 16) -> list[list[Instruction]]:
    """The code's basic blocks without the rare ones: those with calls, narrow stores, copies of another width, copies
    that may have to fill in zeros where there are others, beside matrix instructions the reciprocal of a decay beyond
    one, and those that every way to or from leads through such a block."""
    wide = any(store_bytes(each) == 16 for each in code)
    inside = {each.address for each in code}
    copies = [each for each in code if copied(each) == copy_bytes]
    whole = not all(map(conditional, copies))
    matrix = any(each.opcode == "HMMA" for each in kernel.code.main)
    pending = [groups_left(each) for each in code if each.name == "DEPBAR.LE"]

    def shows(each: Instruction) -> bool:
        other = (copied(each) != copy_bytes and not each.predicate) or (whole and conditional(each))
        other = other and each.opcode == "LDGSTS"
        narrow = wide and 0 < store_bytes(each) < 16
        drains = each.name == "DEPBAR.LE" and groups_left(each) < max(
            pending, default=0
        )  # another case of the same switch
        once = each.opcode == "LDG" and bool(copies)  # what a loop reads every step comes by its copies
        return other or narrow or drains or once or each.opcode in ("CALL", "BRX", "NANOSLEEP")

    def beyond_one(block: Sequence[Instruction]) -> bool:
        opcodes = {each.opcode for each in block}
        return matrix and "MUFU" in opcodes and "I2F" not in opcodes  # the latter is a division of integers

    def start(block: Sequence[Instruction]) -> int:
        return block[0].address

    blocks = kernel.code.blocks
    rare = {start(block) for block in blocks if any(map(shows, block)) or beyond_one(block)}
    after = {
        start(block): {kernel.code.main[each].address for each in kernel.code.successors_of(block)} for block in blocks
    }
    before: dict[int, set[int]] = {block: set() for block in after}
    for block, follow in after.items():
        for each in follow:
            before[each].add(block)
    sides = (after, before) if matrix else ()  # a scan's slow paths are blocks of their own
    while more := {block for side in sides for block, ways in side.items() if ways and ways <= rare} - rare:
        rare |= more
    left_out = {each.address for each in code if copied(each) not in (0, copy_bytes)}
    chosen = [
        [each for each in block if each.address in inside - left_out] for block in blocks if start(block) not in rare
    ]
    return [block for block in chosen if block]


def joined(blocks: Sequence[Sequence[Instruction]]) -> list[Instruction]:
    """Blocks, one after the other."""
    return [each for block in blocks for each in block]


def occupancy(chip: Chip, kernel: Kernel, shared_bytes: int) -> int:
    """Blocks that fit on a multiprocessor at once."""
    registers = (kernel.use.registers + 7) // 8 * 8 * 32 * WARPS
    return min(chip.registers // registers, chip.shared_capacity // (shared_bytes + 1024), 32)


def step_clocks(chip: Chip, kernel: Kernel, at_once: int, blocks: int) -> tuple[float, float]:
    """Clocks a time step of a sequential scan, `at_once` blocks on a multiprocessor; and by bandwidth alone."""
    busy = min(chip.multiprocessors, -(-blocks // at_once))
    share = min(chip.memory_bytes * chip.multiprocessors / busy, chip.most_memory_bytes)
    chip = replace(chip, memory_bytes=share)
    loop = hot_loop(kernel)
    assert loop is not None, f"{kernel.name} has no loop over time"
    program = joined(straight(kernel, loop.own))
    in_loop, passes = steps(loop), 64 // steps(loop) + 1
    short, long = (clocks(chip, program, times, WARPS, at_once, from_memory=True) for times in (passes, 2 * passes))
    moved = sum(16 for each in program if is_copy(each) or store_bytes(each) == 16 or each.name.startswith("LDG.E.128"))
    return (long - short) / (passes * in_loop), moved / in_loop * 32 * WARPS * at_once / share


def tile_clocks(
    chip: Chip, kernel: Kernel, C: int, columns: int, resident: bool, blocks: int, outputs: int = 2
) -> tuple[float, float]:
    """Clocks a tile of project_scan on a multiprocessor with so many blocks, and those of its matrix instructions."""
    product = hot_loop(kernel)
    assert product is not None, f"{kernel.name} has no loop over slices"
    row_bytes = C * (4 if "<float," in kernel.name else 2)
    slices = max(1, -(-row_bytes // 128))
    copy_bytes = next(width for width in (16, 8, 4) if row_bytes % width == 0)
    needed = (columns + (0 if resident else 128)) * 128 // copy_bytes // (32 * WARPS)

    def copies(code: Sequence[Instruction]) -> int:
        return sum(copied(each) == copy_bytes for each in code)

    within = straight(kernel, product.own, copy_bytes)
    for block in list(within):  # the weights' copies come before those of x
        if 0 < copies(block) <= copies(joined(within)) - needed:
            within.remove(block)
    missing = needed - copies(joined(within))
    copying = [loop for loop in kernel.code.loops if loop.body == loop.own and copies(loop.body)]
    more = list(copying[0].body) * (missing // copies(copying[0].body)) if missing else []
    slice_code = joined(within) + more
    outer = next(loop for loop in kernel.code.loops if len(loop.body) > len(product.body) and _around(loop, product))
    rest = joined(straight(kernel, outer.own, copy_bytes))
    stores = [each for each in rest if store_bytes(each) == 16]
    unwritten = {each.address for each in stores[1::2]} if outputs == 1 else set()
    program = slice_code * slices + [each for each in rest if each.address not in unwritten]
    once, twice = (clocks(chip, program, times, WARPS, blocks, from_memory=False) for times in (1, 2))
    matrix = sum(each.opcode == "HMMA" for each in program) * chip.matrix * blocks * WARPS / 4
    return (twice - once) / blocks, matrix / blocks


def _around(loop: Loop, inner: Loop) -> bool:
    return {each.address for each in inner.body} < {each.address for each in loop.body}


def scan_rows(chip: Chip, kernels: Sequence[Kernel]) -> Iterator[list[str]]:
    """Clocks a step of the sequential scans, at each of the shapes' channels."""
    for dtype, size in DTYPES.items():
        for direction in ("forward", "backward"):
            prefix = f"scan_{direction}_sequential<{dtype}, {16 // size}, true>"
            kernel = next(each for each in kernels if each.name == prefix)
            loop = hot_loop(kernel)
            assert loop is not None, prefix
            copies = sum(map(is_copy, loop.own)) // steps(loop)
            most = occupancy(chip, kernel, copies * round(in_flight(kernel)) * 16 * 32 * WARPS)
            for shape in SHAPES.values():
                blocks = -(-shape.N * shape.H * size // (16 * 32 * WARPS))
                at_once = min(most, -(-blocks // chip.multiprocessors))
                simulated, share = step_clocks(chip, kernel, at_once, blocks)
                cells = [f"{simulated:.0f}", f"{share:.0f}", f"{simulated / share:.2f}"]
                yield [f"{direction}, {dtype}", shape.name, str(blocks), str(at_once), *cells]


def tile_rows(chip: Chip, kernels: Sequence[Kernel]) -> Iterator[list[str]]:
    """Clocks a wide tile of project_scan for each of the shapes' input features; weights stay where they fit."""
    for dtype, size in DTYPES.items():
        for shape in SHAPES.values():
            kernel = next(each for each in kernels if each.name == f"project_scan_kernel<{dtype}, 8, true>")
            slices = -(-shape.C * size // 128)
            stages = min(2, slices)
            rest = 16384 * stages + 13056 + 2048 + 512
            resident = rest + 16384 * slices <= 227 << 10
            shared = rest + 16384 * (slices if resident else stages)
            blocks = occupancy(chip, kernel, shared)
            simulated, matrix = tile_clocks(chip, kernel, shape.C, 128, resident, blocks)
            cells = [f"{simulated:.0f}", f"{matrix:.0f}", f"{simulated / matrix:.2f}"]
            yield [f"project_scan, {dtype}", shape.name, "stay" if resident else "pass", str(blocks), *cells]


def fit_rows(chip: Chip, kernels: Sequence[Kernel]) -> Iterator[list[str]]:
    """What csrc/plan/cost.h has of a tile whose weights stay and of which spikes alone are written: clocks a slice, and
    of the rest, by blocks at once."""
    for dtype, size in DTYPES.items():
        for pairs, most in ((8, 2), (4, 2 if size == 4 else 3)):
            kernel = next(each for each in kernels if each.name == f"project_scan_kernel<{dtype}, {pairs}, true>")
            for blocks in range(1, most + 1):
                four, eight = (
                    tile_clocks(chip, kernel, slices * 128 // size, 16 * pairs, True, blocks, 1)[0] for slices in (4, 8)
                )
                each = (eight - four) / 4
                yield [dtype, f"{16 * pairs} columns", str(blocks), f"{each:.0f}", f"{four - 4 * each:.0f}"]


def otherwise_rows(kernels: Sequence[Kernel]) -> Iterator[list[str]]:
    """The bfloat16 kernels at `speech`, should the chip be otherwise."""
    speech = SHAPES["speech"]
    of_name = {kernel.name: kernel for kernel in kernels}
    blocks = -(-speech.N * speech.H * 2 // (16 * 32 * WARPS))
    for case, changes in OTHERWISE.items():
        chip = replace(H100, **changes)  # type: ignore[arg-type]
        steps_of = [
            step_clocks(chip, of_name[f"scan_{direction}_sequential<bfloat16, 8, true>"], 1, blocks)[0]
            for direction in ("forward", "backward")
        ]
        product = of_name["project_scan_kernel<bfloat16, 8, true>"]
        tiles = [
            tile_clocks(chip, product, speech.C, 128, True, 1)[0],
            tile_clocks(chip, product, SHAPES["square"].C, 128, False, 2)[0],
        ]
        yield [case, "", *(f"{each:.0f}" for each in (*steps_of, *tiles))]


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its first two columns to the left."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [heads, *rows]
    )


def main() -> int:
    """Compiles for one architecture, and prints both tables."""
    try:
        nvcc, nvdisasm = find_nvcc(), find_disassembler()
    except Unavailable as reason:
        print(f"simulate: {reason}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(cpu_count()) as pool:
        sources = sorted(KERNELS.glob("*.cu"))
        compiled = list(pool.map(lambda source: compile_kernels(nvcc, nvdisasm, source, ARCHITECTURE), sources))
    kernels = [kernel for each in compiled for kernel in each]
    print(f"Simulated for an {H100.name}, not measured.\n\nSequential scans, clocks a time step of a multiprocessor:\n")
    heads = ["scan", "shape", "blocks", "at once", "simulated", "by bandwidth", "ratio"]
    print(aligned(heads, list(scan_rows(H100, kernels))))
    print("\nproject_scan, clocks a tile of 128 columns of a multiprocessor:\n")
    heads = ["kernel", "shape", "weights", "blocks at once", "simulated", "matrix instructions", "ratio"]
    print(aligned(heads, list(tile_rows(H100, kernels))))
    print("\nproject_scan, weights stay, spikes alone are written: clocks a slice of a tile, and of its other steps:\n")
    print(aligned(["kernel", "tile", "blocks at once", "slice", "rest"], list(fit_rows(H100, kernels))))
    print("\nbfloat16, should the chip be otherwise: clocks a step at speech, and a tile at speech and at square:\n")
    heads = ["chip", "", "forward", "backward", "tile, speech", "tile, square"]
    print(aligned(heads, list(otherwise_rows(kernels))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
