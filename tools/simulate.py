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

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import cpu_count

from benchmarks.shapes import SHAPES
from toolchain import Unavailable, find_nvcc
from tools.chip import H100, Chip, clocks
from tools.machine_code import Instruction, Kernel, Loop, compile_kernels, find_disassembler
from tools.ptxas_report import KERNELS
from tools.schedule import hot_loop, in_flight, is_copy, steps, store_bytes

ARCHITECTURE = "9.0"
WARPS = 4  # of a block of the sequential scans, and of project_scan
DTYPES = {"bfloat16": 2, "float": 4}


def groups_left(wait: Instruction) -> int:
    """How many groups of copies may be in flight after a wait."""
    return int(wait.operands.split(",")[-1], 0)


def straight(kernel: Kernel, code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The code's basic blocks, without those that calls, narrow copies or narrow stores show to be rare."""
    wide = any(store_bytes(each) == 16 for each in code)
    inside = {each.address for each in code}

    copies = any(map(is_copy, code))
    pending = [groups_left(each) for each in code if each.name == "DEPBAR.LE"]

    def rare(each: Instruction) -> bool:
        narrow = (each.opcode == "LDGSTS" and not is_copy(each)) or (wide and 0 < store_bytes(each) < 16)
        drains = each.name == "DEPBAR.LE" and groups_left(each) < max(pending)  # another case of the same switch
        once = each.opcode == "LDG" and copies  # what a loop reads every step comes by its copies
        return narrow or drains or once or each.opcode in ("CALL", "BRX", "NANOSLEEP")

    blocks = [[each for each in block if each.address in inside] for block in kernel.code.blocks]
    return [block for block in blocks if block and not any(map(rare, block))]


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


def tile_clocks(chip: Chip, kernel: Kernel, C: int, columns: int, resident: bool, blocks: int) -> tuple[float, float]:
    """Clocks a tile of project_scan on a multiprocessor with so many blocks, and those of its matrix instructions."""
    product = hot_loop(kernel)
    assert product is not None, f"{kernel.name} has no loop over slices"
    row_bytes = C * (4 if "<float," in kernel.name else 2)
    slices = max(1, -(-row_bytes // 128))
    needed = (columns + (0 if resident else 128)) * 8 // (32 * WARPS)
    within = straight(kernel, product.own)
    while sum(is_copy(each) for block in within for each in block) > needed:
        within.remove(next(block for block in reversed(within) if any(map(is_copy, block))))
    missing = needed - sum(is_copy(each) for block in within for each in block)
    copying = [loop for loop in kernel.code.loops if loop.body == loop.own and any(map(is_copy, loop.body))]
    more = list(copying[0].body) * (missing // sum(map(is_copy, copying[0].body))) if missing else []
    slice_code = joined(within) + more
    outer = next(loop for loop in kernel.code.loops if len(loop.body) > len(product.body) and _around(loop, product))
    program = slice_code * slices + joined(straight(kernel, outer.own))
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
