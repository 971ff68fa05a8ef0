"""Compiles every CUDA kernel for every default architecture and reports what ptxas made of it.

    python -m tools.ptxas_report [FILE.cu ...]

Prints one row per kernel with the registers a thread has on each architecture, and ends with status 1 if any kernel
spills registers to local memory anywhere. `TORCH_CUDA_ARCH_LIST` narrows the architectures; no GPU and no torch is
needed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from os import cpu_count
from pathlib import Path

from toolchain import Unavailable, architectures, find_nvcc

KERNELS = Path(__file__).resolve().parent.parent / "csrc" / "cuda"


@dataclass(frozen=True)
class KernelUse:
    """What one kernel takes on one architecture.

    `registers` is per thread, `shared_bytes` the static shared memory of a block (the launcher asks for the dynamic
    part), `stack_bytes` the local memory of a thread, and `spill_bytes` the stores and loads of spilled registers.
    """

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>[^']+)' for '(?P<architecture>\w+)'\n"
    r"(?:(?!Compiling entry function).*\n)*?"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def parse(log: str) -> list[KernelUse]:
    """Reads what `ptxas -v` prints, in its order.

    Raises:
        ValueError: the log names a kernel whose use is not found, or names none: ptxas then says it in another way, and
            spills would go unseen.
    """
    uses = [
        KernelUse(
            kernel=entry["kernel"],
            architecture=entry["architecture"],
            registers=int(entry["registers"]),
            shared_bytes=int(shared[1]) if (shared := re.search(r"(\d+) bytes smem", entry["rest"])) else 0,
            stack_bytes=int(entry["stack"]),
            spill_bytes=int(entry["stores"]) + int(entry["loads"]),
        )
        for entry in _ENTRY.finditer(log)
    ]
    announced = log.count("Compiling entry function")
    if not uses or len(uses) != announced:
        raise ValueError(f"ptxas announced {announced} kernels, and the use of {len(uses)} was understood:\n{log}")
    return uses


def compile_cubin(nvcc: Path, source: Path, architecture: str, cubin: Path) -> str:
    """Compiles one file for one architecture ("9.0"), as setup.py does, and returns what ptxas printed."""
    command = [
        *(str(nvcc), "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DLEAKYPAR_WITH_CUDA"),
        *(f"-arch=sm_{architecture.replace('.', '')}", "-Xptxas=-v", "-cubin"),
        *("-o", str(cubin), str(source)),
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
    return run.stderr


def compile_verbosely(nvcc: Path, source: Path, architecture: str) -> str:
    """The same, and only what ptxas printed is kept."""
    with tempfile.TemporaryDirectory() as folder:
        return compile_cubin(nvcc, source, architecture, Path(folder, "kernel.cubin"))


def demangle(names: Sequence[str]) -> list[str]:
    """C++ names, without arguments and enclosing namespaces; as they are where c++filt is missing."""
    if (cxxfilt := shutil.which("c++filt")) is None:
        return list(names)
    text = subprocess.run([cxxfilt], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [shorten(name) for name in text.splitlines()]


def shorten(name: str) -> str:
    """`void leakypar::cuda::(anonymous namespace)::scan<float, 4>(...)` as `scan<float, 4>`."""
    name = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N_\w*::|\bleakypar::|\bcuda::", "", name.removeprefix("void "))
    depth = 0
    for at, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return name[:at]
    return name


def table(uses: Iterable[KernelUse]) -> str:
    """One row per kernel: registers by architecture, then the worst of the rest over architectures."""
    uses = list(uses)
    # By demangled names: a kernel of an anonymous namespace is mangled with a hash of its own on each architecture.
    by_kernel: dict[str, dict[str, KernelUse]] = {}
    for use, kernel in zip(uses, demangle([use.kernel for use in uses]), strict=True):
        by_kernel.setdefault(kernel, {})[use.architecture] = use
    columns = sorted({name for row in by_kernel.values() for name in row}, key=lambda name: (len(name), name))
    rows = [["kernel", *columns, "shared", "stack", "spills"]]
    for kernel, row in sorted(by_kernel.items()):
        registers = [str(row[column].registers) if column in row else "" for column in columns]
        worst = [
            max(use.shared_bytes for use in row.values()),
            max(use.stack_bytes for use in row.values()),
            max(use.spill_bytes for use in row.values()),
        ]
        rows.append([kernel, *registers, *map(str, worst)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [kernel.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        )
        for kernel, *cells in rows
    )


def main(arguments: Sequence[str]) -> int:
    sources = [Path(argument) for argument in arguments] or sorted(KERNELS.glob("*.cu"))
    targets = [name.removesuffix("+PTX") for name in architectures().replace(" ", ";").split(";")]
    try:
        nvcc = find_nvcc()
    except Unavailable as missing:
        print(f"ptxas_report: {missing}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(cpu_count()) as pool:
        logs = list(pool.map(lambda pair: compile_verbosely(nvcc, *pair), product(sources, targets)))
    uses = [use for log in logs for use in parse(log)]
    print("Registers of a thread by architecture; the largest static shared memory, stack and spills, in bytes.\n")
    print(table(uses))
    spilling = [use for use in uses if use.spill_bytes > 0]
    for name, use in zip(demangle([use.kernel for use in spilling]), spilling, strict=True):
        print(f"error: {name} spills {use.spill_bytes} bytes on {use.architecture}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
