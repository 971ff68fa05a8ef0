"""A model of one multiprocessor, which runs instructions as `tools.machine_code` reads them.

Four schedulers issue one instruction a clock each, from warps that run their instructions in order: a warp waits for
the stall count of its last instruction and for the scoreboards that its next one names. An instruction then takes its
pipe for as many clocks as the pipe needs for 32 lanes. What goes through memory takes the multiprocessor's one path to
shared memory and first-level cache, then the multiprocessor's share of the second-level cache or of memory, and comes
back after a latency.

Left out: bank and register-port conflicts, instruction fetch, other blocks' traffic beyond an equal share of the
bandwidth, the tail of a launch, and clock rates under load.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.machine_code import Instruction


@dataclass(frozen=True)
class Chip:
    """The rates of a multiprocessor, in clocks and bytes a clock.

    Pipes are given in clocks for one instruction of a warp on one of the four schedulers: 32 lanes over a quarter of
    the multiprocessor's results a clock.
    """

    name: str
    multiprocessors: int
    clock_ghz: float
    fma: float  # FFMA, FMUL, FADD
    integer: float  # comparison, logic, shift, minimum, integer add
    multiply: float  # IMAD
    convert: float  # MUFU and conversions to and from integers
    pack: float  # float32 to a pair of a 16-bit type
    double: float
    matrix: float  # m16n8k16 of 16-bit operands, or m16n8k8 of TF32, accumulated in float32
    shared_latency: float
    cache_latency: float
    memory_latency: float
    memory_bytes: float  # a clock: the share of what a copy kernel reaches
    cache_bytes: float  # a clock: the share of the second-level cache's bandwidth, when every multiprocessor asks
    most_memory_bytes: float = 64.0  # a clock, when few multiprocessors ask: the width of the path to the cache
    shared_bytes: float = 128.0  # a clock, of shared memory and first-level cache together
    registers: int = 65536
    shared_capacity: int = 228 << 10


# Each figure and where it was read. What follows "assumed" was found in no source; `python -m tools.simulate` prints
# what the results become where it is otherwise.
#
# fma, integer, multiply, convert, double: 128, 64, 64, 16 and 64 results a clock of a multiprocessor of 9.0:
#   "Throughput of Native Arithmetic Instructions", CUDA C++ Best Practices Guide 13.0, table 5, of which OpenXLA's
#   stream_executor/cuda/cuda_core_info_table.cc repeats the first two and the last; 16 are what it has for MUFU.
# pack: 64 a clock, assumed. The table's row has 16 from 12.0 on.
# matrix: 512 multiply-adds a clock and quarter at full rate (the same file, from NVIDIA's H100 white paper 1.04,
#   table 3), of which mma.sync reaches 65%: 494 of 757 TFLOP/s on an H800, Luo et al., "Dissecting the NVIDIA Hopper
#   Architecture through Microbenchmarking and Multiple Level Analysis", arXiv 2501.12084, as waynehacking8/blackwell-
#   tensorcore-kernels reads it. An m16n8k16 of 2048 takes 2048 / (0.65 * 512). In TF32 half of everything.
# cache_latency, memory_latency: te42kyfo/gpu-benches at 1c36d50, gpu-latency/h100_pcie.txt, a chase of pointers at
#   1755 MHz: 265 in the near half of the second-level cache (475 in the far one), 650 from 125 MB on. An H100's
#   neighbour, the GH200: 281 and 690 (markdewing/AI_kernels, latency/README.md).
# shared_bytes: "close to 128 B/cycle/SM", README of gpu-benches.
# memory_bytes: 2.90 TB/s, the copy of BabelStream on an H100 80GB HBM3 (samuel-bohman/AI-benchmarking-guide,
#   Azure_Results/ND_H100_v5_results.md), over 132 multiprocessors.
# cache_bytes: 5.5 TB/s over the 114 multiprocessors of an H100 PCIe at 1755 MHz ("about 5.x TB/s", README of gpu-
#   benches, as of July 2023). Its later file gpu-l2-cache/h100_pcie.txt has 6.9 TB/s.
# clock_ghz: assumed; the PCIe card's boost, where the SXM's is 1.98. Only the bandwidths' shares depend on it.
# shared_latency, most_memory_bytes, and the constants in the code below, such as a barrier's 20 clocks: assumed.
H100 = Chip(
    name="H100 SXM",
    multiprocessors=132,
    clock_ghz=1.755,
    fma=1,
    integer=2,
    multiply=2,
    convert=8,
    pack=2,
    double=2,
    matrix=6.15,
    shared_latency=29,
    cache_latency=265,
    memory_latency=650,
    memory_bytes=12.5,
    cache_bytes=27.5,
)

# What else the assumed figures could be, and those on which sources differ.
OTHERWISE: dict[str, dict[str, float]] = {
    "as above": {},
    "memory_latency 480": {"memory_latency": 480},
    "memory_latency 800": {"memory_latency": 800},
    "cache_bytes 34.5": {"cache_bytes": 34.5},
    "cache_bytes 20": {"cache_bytes": 20.0},
    "pack 16 a clock": {"pack": 8},
    "shared_latency 35": {"shared_latency": 35},
    "matrix at 55%": {"matrix": 7.27},
    "memory_bytes 14": {"memory_bytes": 14.0},
}

_MULTIPLY = {"IMAD"}
_FMA = {"FFMA", "FMUL", "FADD"}
_CONVERT = {"MUFU", "F2F", "F2I", "I2F", "FRND"}
_DOUBLE = {"DFMA", "DADD", "DMUL", "DSETP"}
_CONTROL = {
    "BRA",
    "BSSY",
    "BSYNC",
    "BAR",
    "EXIT",
    "CALL",
    "RET",
    "NOP",
    "WARPSYNC",
    "DEPBAR",
    "LDGDEPBAR",
    "BRX",
    "BREAK",
}


def width(instruction: Instruction) -> int:
    """Bytes that a lane moves."""
    suffixes = instruction.name.split(".")
    if instruction.opcode == "LDSM":
        return 16 if instruction.name.endswith(".4") else 8
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[suffix] for suffix in suffixes if suffix in widths), 4)


@dataclass
class Warp:
    """A warp's state: where it is in its instructions, and what it waits for."""

    block: int
    scheduler: int
    program: Sequence[Instruction]
    at: int = 0
    ready: float = 0.0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: float = 0.0  # when the copies since the last group are there
    groups: list[float] = field(default_factory=list)  # when each group is there


@dataclass
class Multiprocessor:
    """Runs warps to the end of their programs."""

    chip: Chip
    from_memory: bool  # loads go to memory, and stores; otherwise both stay in the second-level cache
    issue: list[float] = field(default_factory=lambda: [0.0] * 4)
    pipes: dict[tuple[str, int], float] = field(default_factory=dict)
    path: float = 0.0  # shared memory and first-level cache
    beyond: float = 0.0  # second-level cache or memory
    issued: int = 0

    def run(self, warps: Sequence[Warp]) -> list[float]:
        """The clock at which each warp is done."""
        done = [0.0] * len(warps)
        queue = [(warp.ready, number) for number, warp in enumerate(warps)]
        heapq.heapify(queue)
        arrived: dict[int, list[int]] = {}
        sizes = {warp.block: sum(other.block == warp.block for other in warps) for warp in warps}
        while queue:
            clock, number = heapq.heappop(queue)
            warp = warps[number]
            if warp.at == len(warp.program):
                done[number] = clock
                continue
            instruction = warp.program[warp.at]
            if (when := self._earliest(warp, instruction)) > clock:
                heapq.heappush(queue, (when, number))
                continue
            self._issue(warp, instruction, clock)
            warp.at += 1
            if instruction.opcode == "BAR":
                waiting = arrived.setdefault(warp.block, [])
                waiting.append(number)
                if len(waiting) < sizes[warp.block]:
                    continue
                for each in waiting:
                    warps[each].ready = max(warps[each].ready, clock + 20)
                    heapq.heappush(queue, (warps[each].ready, each))
                waiting.clear()
            else:
                heapq.heappush(queue, (warp.ready, number))
        return done

    def _earliest(self, warp: Warp, instruction: Instruction) -> float:
        when = max(warp.ready, self.issue[warp.scheduler], *(warp.scoreboards[each] for each in instruction.waits), 0.0)
        if instruction.name == "DEPBAR.LE":
            pending = int(instruction.operands.split(",")[-1], 0)
            when = max(when, *(warp.groups[: len(warp.groups) - pending] or [0.0]))
        pipe, _ = self._pipe(instruction)
        if pipe in ("memory", "shared"):
            return max(when, self.path - 64)  # the queue in front of it holds so much
        return max(when, self.pipes.get((pipe, warp.scheduler), 0.0))

    def _pipe(self, instruction: Instruction) -> tuple[str, float]:
        chip, opcode = self.chip, instruction.opcode
        if opcode in ("LDG", "STG", "LDGSTS", "LD", "ST", "ATOMG", "RED"):
            return "memory", 0.0
        if opcode in ("LDS", "STS", "LDSM"):
            return "shared", 0.0
        if opcode == "HMMA":
            return "matrix", chip.matrix
        if opcode in _FMA or instruction.name.startswith("IMAD.MOV"):
            return "fma", chip.fma
        if opcode in _MULTIPLY:
            return "multiply", chip.multiply
        if opcode == "F2FP":
            return "integer", chip.pack
        if opcode in _CONVERT or instruction.name == "HADD2.F32":
            return "convert", chip.convert if opcode != "HADD2" else chip.integer
        if opcode in _DOUBLE:
            return "double", chip.double
        return ("control", 1.0) if opcode in _CONTROL or opcode.startswith("U") else ("integer", chip.integer)

    def _issue(self, warp: Warp, instruction: Instruction, clock: float) -> None:
        chip = self.chip
        self.issue[warp.scheduler] = clock + 1
        self.issued += 1
        warp.ready = clock + max(instruction.stall, 1)
        pipe, clocks = self._pipe(instruction)
        read, result = clock + 10, clock + 24
        if pipe in ("memory", "shared"):
            size = 32 * width(instruction)
            self.path = read = max(self.path, clock) + max(1.0, size / chip.shared_bytes)
            result = read + chip.shared_latency
            if pipe == "memory":
                latency = chip.memory_latency if self.from_memory else chip.cache_latency
                self.beyond = max(self.beyond, clock) + size / (
                    chip.memory_bytes if self.from_memory else chip.cache_bytes
                )
                result = max(self.beyond, read + latency)
        else:
            self.pipes[pipe, warp.scheduler] = clock + clocks
        if instruction.opcode == "LDGSTS":
            warp.copies = max(warp.copies, result)
        elif instruction.opcode == "LDGDEPBAR":
            warp.groups.append(warp.copies)
        if instruction.write_scoreboard is not None and instruction.opcode != "LDGDEPBAR":
            self._hold(warp, instruction.write_scoreboard, result)
        if instruction.read_scoreboard is not None:
            self._hold(warp, instruction.read_scoreboard, read)

    @staticmethod
    def _hold(warp: Warp, scoreboard: int, until: float) -> None:
        warp.scoreboards[scoreboard] = max(warp.scoreboards[scoreboard], until)


def clocks(chip: Chip, program: Sequence[Instruction], times: int, warps: int, blocks: int, from_memory: bool) -> float:
    """Clocks that `blocks` blocks of `warps` warps each take to run the program so many times."""
    multiprocessor = Multiprocessor(chip, from_memory)
    whole = list(program) * times
    running = [
        Warp(block, (block * warps + warp) % 4, whole, ready=40.0 * block)
        for block in range(blocks)
        for warp in range(warps)
    ]
    return max(multiprocessor.run(running))
