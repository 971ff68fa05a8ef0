"""Builds the emulated CUDA kernels, and runs programs that load them under AddressSanitizer.

The interpreter is not instrumented, so a process that loads an instrumented library must have the sanitizers' runtimes
from its start: `sanitizer_environment()` says how. From the repository's root,

    python -m tests.emulation.build --sanitize address,undefined -- pytest tests -k emulated

builds the instrumented library and runs the command in that environment.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parents[1]
SANITIZERS = "address,undefined"


def build(sanitize: str | None = None) -> Path:
    """Builds `leakypar_emulated.so` against the torch that is installed, incrementally, and returns its path.

    `torch.ops.load_library` registers its operators as `torch.ops.leakypar_emulated`.

    Args:
        sanitize: sanitizers to compile with, separated by commas, such as "address,undefined".

    Raises:
        RuntimeError: if CMake is missing, or fails; with the compiler's output.
    """
    return build_target("leakypar_emulated", sanitize) / "leakypar_emulated.so"


def build_harness(sanitize: str | None = None) -> Path:
    """Builds the sample kernels of `planted/`, and returns the path of the program. Needs no torch."""
    return build_target("harness", sanitize) / "harness"


def build_target(target: str, sanitize: str | None) -> Path:
    folder = ROOT / "build" / ("emulation" if not sanitize else "emulation-" + sanitize.replace(",", "-"))
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), f"-DLEAKYPAR_SANITIZE={sanitize or ''}", *torch_paths()]
    if not (folder / "CMakeCache.txt").exists() and tool("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with locked(folder):
        run(configure)
        run(["cmake", "--build", str(folder), "--target", target, "--parallel", str(jobs)])
    return folder


def torch_paths() -> list[str]:
    """Where CMake finds torch; nothing where there is none. Torch is found, not imported: that takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return []
    torch = Path(spec.origin).parent
    return [f"-DTORCH_INCLUDE={torch / 'include'}", f"-DTORCH_LIB={torch / 'lib'}"]


def tool(name: str) -> str | None:
    """A program beside this interpreter, where pip puts it, or on the path."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def run(command: Sequence[str]) -> None:
    program = tool(command[0])
    if program is None:
        raise RuntimeError(f"{command[0]} is not installed; the emulated kernels need it: pip install {command[0]}")
    # Compilers are not to be run under the sanitizers that this process may be run under.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    result = subprocess.run(
        [program, *command[1:]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps the processes of a parallel test run from building in one folder at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sanitizer_environment() -> dict[str, str]:
    """The environment in which an uninstrumented program may load a library built with `SANITIZERS`.

    libstdc++ is preloaded too: AddressSanitizer looks for what throws exceptions when it starts, and the interpreter
    has not loaded that yet. Leaks are not looked for: the interpreter's own would be found.
    """
    compiler = os.environ.get("CXX", "c++")
    libraries = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        found = subprocess.run([compiler, f"-print-file-name={name}"], stdout=subprocess.PIPE, text=True, check=True)
        libraries.append(str(Path(found.stdout.strip()).resolve(strict=True)))
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LEAKYPAR_EMULATION_SANITIZE": SANITIZERS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulation.build", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sanitize", metavar="NAMES", help=f"sanitizers to compile with, such as {SANITIZERS}")
    parser.add_argument("command", nargs="*", help="what to run then, with the sanitizers' runtimes preloaded")
    arguments = parser.parse_args()
    print(build(arguments.sanitize), flush=True)
    if not arguments.command:
        return 0
    return subprocess.run(arguments.command, env=sanitizer_environment() if arguments.sanitize else None).returncode


if __name__ == "__main__":
    sys.exit(main())
