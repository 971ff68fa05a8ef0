"""Reads the machine code of a kernel: instructions with their control words, basic blocks and loops.

Since Volta an instruction is 128 bits. `nvdisasm --print-instruction-encoding` prints both halves, and of the upper one

    bits 41-44  stall         clocks before the warp may issue its next instruction
    bit  45     yield
    bits 46-48  scoreboard    that is released when the result is written (7: none)
    bits 49-51  scoreboard    that is released when the operands have been read (7: none)
    bits 52-57  scoreboards   that must be free before this instruction issues

as found by Jia, Maggioni, Staiger and Scarpazza, "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking"
(2018), section 2.1. They hold up to compute capability 12.0.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from toolchain import Unavailable, find_nvcc
from tools.ptxas_report import KernelUse, compile_cubin, demangle
from tools.ptxas_report import parse as parse_use

NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Instruction:
    """One instruction and its control word."""

    address: int
    predicate: str  # such as "@!P0", or nothing
    name: str  # with suffixes, such as "LDG.E.128"
    operands: str
    targets: tuple[str, ...]  # the labels that a branch or call may go to
    stall: int
    write_scoreboard: int | None
    read_scoreboard: int | None
    waits: frozenset[int]

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]

    @property
    def always(self) -> bool:
        """Whether it is executed whatever a predicate says: a branch may have one more of these among its operands."""
        return self.predicate in ("", "@PT") and not re.match(r"!?U?P\d", self.operands)


@dataclass(frozen=True)
class Loop:
    """A natural loop: its instructions in the order of their addresses, and the instructions of no inner loop."""

    body: tuple[Instruction, ...]
    own: tuple[Instruction, ...]


@dataclass(frozen=True)
class Code:
    """A kernel's instructions in order, where its labels stand, and which of the labels begin a called function."""

    mangled: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # label to position in `instructions`

    @cached_property
    def main(self) -> tuple[Instruction, ...]:
        """The kernel without the functions behind it that the compiler calls, such as that of a 64-bit division."""
        calls = [call for call in self.instructions if call.opcode == "CALL"]
        # A call of a label inside the kernel is how a warp meets before 9.0; functions have names that begin with "$".
        called = [self.labels[name] for call in calls for name in call.targets if name.startswith("$")]
        return self.instructions[: min(called, default=len(self.instructions))]

    @cached_property
    def successors(self) -> list[list[int]]:
        """For each position of `main`, the positions that may be executed next."""
        end, after = len(self.main), []
        for at, instruction in enumerate(self.main):
            targets = [self.labels[label] for label in instruction.targets if label in self.labels]
            ends = instruction.opcode in ("EXIT", "RET", "BRA", "BRX", "JMP", "JMX") and instruction.always
            follows = [] if ends else [at + 1]
            jumps = instruction.opcode in ("BRA", "BRX", "JMP", "JMX")
            after.append([each for each in [*follows, *(targets if jumps else [])] if each < end])
        return after

    @cached_property
    def _block_ends(self) -> tuple[list[int], list[int]]:
        """Where basic blocks begin, and where they end."""
        starts = {0}
        for at, after in enumerate(self.successors):
            if after != [at + 1]:
                starts.update(after, [at + 1])
        order = sorted(start for start in starts if start < len(self.main))
        return order, [*order[1:], len(self.main)]

    @cached_property
    def blocks(self) -> tuple[tuple[Instruction, ...], ...]:
        """Every basic block, in order."""
        return tuple(self.main[start:end] for start, end in zip(*self._block_ends, strict=True))

    def successors_of(self, block: Sequence[Instruction]) -> list[int]:
        """The positions of `main` that may be executed after a basic block."""
        return self.successors[(block[-1].address - self.main[0].address) // 16]

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """Every natural loop, innermost first."""
        order, ends = self._block_ends
        block_of = {start: i for i, start in enumerate(order)}
        after = [[block_of[at] for at in self.successors[end - 1]] for end in ends]
        before: list[list[int]] = [[] for _ in order]
        for block, successors in enumerate(after):
            for successor in successors:
                before[successor].append(block)
        dominators = _dominators(after, before)
        members: dict[int, set[int]] = {}
        for block, dominating in dominators.items():
            for header in dominating.intersection(after[block]):
                members.setdefault(header, {header}).update(_reaching(block, header, before))
        loops = sorted(members.values(), key=len)
        return tuple(self._loop(blocks, loops, order, ends) for blocks in loops)

    def _loop(self, blocks: set[int], loops: Sequence[set[int]], order: Sequence[int], ends: Sequence[int]) -> Loop:
        inner = set().union(*(each for each in loops if each < blocks))

        def of(chosen: set[int]) -> tuple[Instruction, ...]:
            return tuple(self.main[at] for block in sorted(chosen) for at in range(order[block], ends[block]))

        return Loop(of(blocks), of(blocks - inner))


def _dominators(after: Sequence[Sequence[int]], before: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """Of each block that can be reached, the blocks that every way to it passes."""
    reached, todo = {0}, [0]
    while todo:
        todo.extend(new := [each for each in after[todo.pop()] if each not in reached])
        reached.update(new)
    blocks = sorted(reached)
    found = {block: {0} if block == 0 else reached.copy() for block in blocks}
    changed = True
    while changed:
        changed = False
        for block in blocks[1:]:
            ways = [found[each] for each in before[block] if each in reached]
            if (dominating := set.intersection(*ways) | {block}) != found[block]:
                found[block], changed = dominating, True
    return found


def _reaching(block: int, header: int, before: Sequence[Sequence[int]]) -> set[int]:
    """The blocks from which `block` is reached without passing `header`."""
    found, todo = {block}, [block]
    while todo:
        at = todo.pop()
        if at != header:
            todo.extend(new := [each for each in before[at] if each not in found])
            found.update(new)
    return found


_SECTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<predicate>@!?U?P\w+)?\s*(?P<name>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_HALF = re.compile(r"/\* 0x([0-9a-f]{16}) \*/\s*$")
_TARGET = re.compile(r"`\(([^)]+)\)|(\.L_x_\d+)")


def parse(listing: str) -> list[Code]:
    """Reads what `nvdisasm --print-code --print-instruction-encoding` prints.

    Raises:
        ValueError: no kernel is named, one has no instruction, or an instruction has no second half: it is then
            written in another way, and what is missing would go unseen.
    """
    sections: list[tuple[str, list[Instruction], dict[str, int]]] = []
    waiting: re.Match[str] | None = None
    for line in listing.splitlines():
        if waiting is not None:
            if (half := _HALF.search(line)) is None:
                raise ValueError(f"the control word of {waiting[0].strip()} was not found in {line!r}")
            sections[-1][1].append(_decode(waiting, int(half[1], 16)))
            waiting = None
        elif (section := _SECTION.match(line)) is not None:
            sections.append((section[1], [], {}))
        elif not sections:
            continue
        elif (label := _LABEL.match(line)) is not None:
            sections[-1][2][label[1]] = len(sections[-1][1])
        else:
            waiting = _INSTRUCTION.match(line)
    if not sections or any(not instructions for _, instructions, _ in sections):
        raise ValueError(f"no instructions were understood in\n{listing[:2000]}")
    return [Code(name, tuple(instructions), labels) for name, instructions, labels in sections]


def _decode(match: re.Match[str], word: int) -> Instruction:
    def scoreboard(bit: int) -> int | None:
        return None if (number := word >> bit & 7) == NO_SCOREBOARD else number

    operands = match["operands"].strip()
    return Instruction(
        address=int(match["address"], 16),
        predicate=match["predicate"] or "",
        name=match["name"],
        operands=operands,
        targets=tuple(a or b for a, b in _TARGET.findall(operands)),
        stall=word >> 41 & 15,
        write_scoreboard=scoreboard(46),
        read_scoreboard=scoreboard(49),
        waits=frozenset(number for number in range(6) if word >> 52 + number & 1),
    )


def find_disassembler() -> Path:
    """nvdisasm: on the path, beside nvcc, or in the packages nvidia-cuda-nvdisasm or triton.

    Raises:
        Unavailable: it is in none of these places.
    """
    folders = [find_nvcc().parent]
    if (nvidia := find_spec("nvidia")) is not None:
        folders += [found for root in nvidia.submodule_search_locations or () for found in Path(root).glob("*/bin")]
    if (triton := find_spec("triton")) is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for candidate in (shutil.which("nvdisasm"), *(folder / "nvdisasm" for folder in folders)):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise Unavailable("nvdisasm was not found on the path or beside nvcc: pip install nvidia-cuda-nvdisasm")


@dataclass(frozen=True)
class Kernel:
    """A kernel as it was compiled for one architecture: its short C++ name, its code, and what ptxas says it takes."""

    name: str
    architecture: str  # such as "sm_90"
    code: Code
    use: KernelUse


def compile_kernels(nvcc: Path, nvdisasm: Path, source: Path, architecture: str) -> list[Kernel]:
    """Compiles one file for one architecture ("9.0"), as setup.py does, and reads its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        uses = {use.kernel: use for use in parse_use(compile_cubin(nvcc, source, architecture, cubin))}
        command = [str(nvdisasm), "--print-code", "--print-instruction-encoding", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
    codes = parse(run.stdout)
    names = demangle([code.mangled for code in codes])
    return [
        Kernel(name, f"sm_{architecture.replace('.', '')}", code, uses[code.mangled])
        for name, code in zip(names, codes, strict=True)
    ]
