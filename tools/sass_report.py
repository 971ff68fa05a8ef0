"""Disassembles every CUDA kernel and counts the instructions that the design rests on.

    python -m tools.sass_report [FILE.cu ...]

Prints one row per kernel with its matrix instructions (HMMA), asynchronous copies (LDGSTS), matrix loads (LDSM) and
16-byte global loads and stores, for the first of the architectures that are compiled for, and ends with status 1 if a
kernel lacks one that `CLAIMS` says it has. No GPU is needed. The disassembler is that of the CUDA toolkit, or of the
triton package, which torch's CUDA builds install.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from os import cpu_count
from pathlib import Path

from tools.ptxas_report import KERNELS, compile_cubin, demangle
from tools.toolchain import Unavailable, architectures, find_nvcc

# How an instruction of each column begins. The suffixes in between differ by architecture and by operand type.
COLUMNS = {
    "HMMA": re.compile(r"HMMA\b"),
    "LDGSTS.128": re.compile(r"LDGSTS\b.*\.128"),
    "LDGSTS": re.compile(r"LDGSTS\b"),
    "LDSM": re.compile(r"LDSM\b"),
    "LDG.128": re.compile(r"LDG\b.*\.128"),
    "STG.128": re.compile(r"STG\b.*\.128"),
}

# Kernels by the beginning of their name without namespaces, and what each must contain. A kernel of vectors names its
# vector's width last or last but one: those of width 1 are for what is not on a 16-byte boundary.
CLAIMS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"project_scan_kernel<"), ("HMMA", "LDGSTS.128", "LDSM", "STG.128")),
    (re.compile(r"scan_(forward|backward)_lane<\w+, (2|4|8)\b"), ("LDG.128", "STG.128")),
)

_FUNCTION = re.compile(r"^\s*Function : (\S+)|^\s*\.text\.(\S+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


@dataclass(frozen=True)
class KernelCode:
    """The instructions of one kernel, by name with suffixes, such as "LDG.E.128"."""

    kernel: str
    instructions: Counter[str]

    def count(self, column: str) -> int:
        return sum(number for name, number in self.instructions.items() if COLUMNS[column].match(name))


def find_disassembler() -> Path:
    """nvdisasm: on the path, beside nvcc, or in the triton package.

    Raises:
        Unavailable: it is in none of these places.
    """
    beside = [find_nvcc().parent]
    if (triton := find_spec("triton")) is not None and triton.origin is not None:
        beside.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    for candidate in (shutil.which("nvdisasm"), *(folder / "nvdisasm" for folder in beside)):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise Unavailable("nvdisasm was not found on the path, beside nvcc or in the triton package")


def parse(listing: str) -> list[KernelCode]:
    """Reads what `nvdisasm --print-code` or `cuobjdump --dump-sass` prints.

    Raises:
        ValueError: the listing names no kernel, or a kernel in which no instruction is found: it is then written in
            another way, and what is missing would go unseen.
    """
    kernels: list[KernelCode] = []
    for line in listing.splitlines():
        if (function := _FUNCTION.match(line)) is not None:
            kernels.append(KernelCode(function[1] or function[2], Counter()))
        elif kernels and (instruction := _INSTRUCTION.search(line)) is not None:
            kernels[-1].instructions[instruction[1]] += 1
    if not kernels or any(not kernel.instructions for kernel in kernels):
        raise ValueError(f"no instructions were understood in\n{listing[:2000]}")
    return kernels


def missing(kernel: str, code: KernelCode) -> list[str]:
    """What `CLAIMS` says of a kernel of this name, and its code does not have."""
    return [column for name, columns in CLAIMS if name.match(kernel) for column in columns if code.count(column) == 0]


def disassemble(nvdisasm: Path, nvcc: Path, source: Path, architecture: str) -> str:
    """Compiles one file for one architecture ("9.0"), as setup.py does, and returns its listing."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        compile_cubin(nvcc, source, architecture, cubin)
        command = [str(nvdisasm), "--print-code", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
    return run.stdout


def table(kernels: Iterable[tuple[str, KernelCode]]) -> str:
    """One row per kernel: its instructions in all, then those of each column."""
    rows = [["kernel", "all", *COLUMNS]]
    for name, code in sorted(kernels, key=lambda pair: pair[0]):
        rows.append([name, str(code.instructions.total()), *(str(code.count(column)) for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    )


def main(arguments: Sequence[str]) -> int:
    sources = [Path(argument) for argument in arguments] or sorted(KERNELS.glob("*.cu"))
    architecture = architectures().replace(" ", ";").split(";")[0].removesuffix("+PTX")
    try:
        nvcc, nvdisasm = find_nvcc(), find_disassembler()
    except Unavailable as reason:
        print(f"sass_report: {reason}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(cpu_count()) as pool:
        listings = list(pool.map(lambda source: disassemble(nvdisasm, nvcc, source, architecture), sources))
    codes = [code for listing in listings for code in parse(listing)]
    kernels = list(zip(demangle([code.kernel for code in codes]), codes, strict=True))
    print(f"Instructions in the code of each kernel, for sm_{architecture.replace('.', '')}.\n")
    print(table(kernels))
    lacking = [(name, column) for name, code in kernels for column in missing(name, code)]
    for name, column in lacking:
        print(f"error: {name} has no {column}", file=sys.stderr)
    for claimed, _ in CLAIMS:
        if not arguments and not any(claimed.match(name) for name, _ in kernels):
            print(f"error: no kernel is called {claimed.pattern}", file=sys.stderr)
            return 1
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
