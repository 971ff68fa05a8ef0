"""Finds what an extension is built with, and decides which variant of the package to build.

Nothing here imports torch or compiles the extension: each probe answers, or raises `Unavailable` with the reason that
the person who builds will read.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VARIANTS = ("cuda", "cpu", "python")
CHOICES = ("auto", "native", *VARIANTS)

# pip and uv keep the wheels that they build, and would give the lesser one again.
REINSTALL = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps ."

# One binary runs on every GPU from an A100 (8.0) to a consumer Blackwell (12.0), and by its PTX on later ones.
# 10.3 is left out: device code that CUDA 13.0 makes for it has been reported to be numerically wrong.
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"

PYPROJECT = Path(__file__).with_name("pyproject.toml")


def _oldest_torch() -> tuple[int, int]:
    found = re.search(r'^dependencies = \["torch>=(\d+)\.(\d+)"\]$', PYPROJECT.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]), int(found[2])


# The oldest whose stable ABI has all that ops.cpp calls; the binary runs under that torch and every later one.
OLDEST_TORCH = _oldest_torch()


def build_requirements() -> list[str]:
    """What a build needs beside a compiler, torch included, as pip takes it."""
    found = re.search(r"^requires = \[(.*)\]$", PYPROJECT.read_text(), re.MULTILINE)
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


class Unavailable(Exception):
    """Something that a variant needs is missing; the message says what, and what to do about it."""


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit, as its own nvcc describes it."""

    root: Path
    version: str
    include_directories: tuple[Path, ...]
    library_directories: tuple[Path, ...]


@dataclass(frozen=True)
class Decision:
    """What to build.

    Attributes:
        variant: one of `VARIANTS`.
        reason: why this one.
        toolkit: where the variant is "cuda".
        remedy: the command to give once what `reason` misses is there; None where nothing better could be built, or
            the variant was asked for by name.
    """

    variant: str
    reason: str
    toolkit: CudaToolkit | None = None
    remedy: str | None = None


def stable_abi_define() -> str:
    """The macro that keeps torch's headers to what the target version has: major and minor in the top two bytes."""
    major, minor = OLDEST_TORCH
    return f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"


def architectures() -> str:
    """The architectures to compile for: `TORCH_CUDA_ARCH_LIST`, or the default list where it is unset or empty."""
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES


def find_nvcc() -> Path:
    """The nvcc to use: of `CUDA_HOME`, of `CUDA_PATH`, on the path, or in the usual place, in this order.

    Raises:
        Unavailable: none is found, or `CUDA_HOME` or `CUDA_PATH` is set to a folder that has none.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            nvcc = Path(home, "bin", "nvcc")
            if not nvcc.is_file():
                raise Unavailable(f"{variable} is {home!r}, but {nvcc} does not exist")
            return nvcc
    for candidate in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise Unavailable("no CUDA toolkit was found (no CUDA_HOME, no nvcc on the path): install one, or set CUDA_HOME")


def find_cuda_toolkit() -> CudaToolkit:
    """The toolkit that `find_nvcc`'s nvcc belongs to.

    nvcc itself is asked for its folders: the executable on the path may be a wrapper that lies elsewhere, and
    distributions lay a toolkit out in different ways.

    Raises:
        Unavailable: no nvcc is found, it does not run, or its toolkit lacks the headers or the static runtime.
    """
    nvcc = find_nvcc()

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True)

    try:
        dry_run = ask("--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull).stderr
        version = ask("--version").stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{nvcc} does not run: {error}") from error
    settings = dict(re.findall(r"^#\$ (\w+)=[ ]*(.*?)\s*$", dry_run, flags=re.MULTILINE))
    release = re.search(r"release (\d+\.\d+)", version)
    if "TOP" not in settings or release is None:
        raise Unavailable(f"{nvcc} --dryrun and --version do not say where its toolkit is and which version it has")

    root = Path(settings["TOP"]).resolve()
    includes = _folders("-I", settings.get("INCLUDES", ""))
    libraries = _folders("-L", settings.get("LIBRARIES", ""))
    for name, folders in (("cuda_runtime.h", includes), ("libcudart_static.a", libraries)):
        if not any((folder / name).is_file() for folder in folders):
            looked_in = ", ".join(map(str, folders)) or "no folder"
            raise Unavailable(f"the CUDA toolkit at {root} is incomplete: {name} is not in {looked_in}")
    return CudaToolkit(root, release.group(1), includes, libraries)


def _folders(flag: str, flags: str) -> tuple[Path, ...]:
    return tuple(Path(folder).resolve() for folder in re.findall(rf'"{flag}([^"]+)"', flags) if Path(folder).is_dir())


def require_extension_build() -> None:
    """Checks that a C++ extension can be built at all: torch, pybind11, a C++20 compiler and Python's headers.

    Raises:
        Unavailable: with the first of these that is missing.
    """
    if sys.platform == "win32":
        raise Unavailable("the extension is built with GCC or Clang, not on Windows")
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise Unavailable(
            f"torch cannot be imported while building ({error}): install it first, and pass --no-build-isolation to pip"
        ) from error
    if importlib.util.find_spec("pybind11") is None:
        raise Unavailable("pybind11 is not installed: pip install pybind11 ninja, and pass --no-build-isolation to pip")
    check_cxx_compiler(os.environ.get("CXX", "c++"))


def check_cxx_compiler(compiler: str) -> None:
    """Compiles a C++20 file that includes `Python.h` and uses `_Float16`: Clang has it on x86 from version 15 on.

    Raises:
        Unavailable: the compiler is not there, or cannot compile it.
    """
    includes = [f"-I{folder}" for folder in sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <Python.h>\n#include <concepts>\nstatic_assert(!std::integral<_Float16>);\n")
        command = [*compiler.split(), "-std=c++20", "-fsyntax-only", *includes, str(source)]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise Unavailable(
                f"the C++ compiler {compiler!r} does not run ({error}): install one, or set CXX"
            ) from error
    if run.returncode != 0:
        first_error = next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip())
        raise Unavailable(
            f"the C++ compiler {compiler!r} cannot compile C++20 with _Float16 and Python's headers: {first_error}"
        )


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver: without `libcuda.so.1` no kernel can run here."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def mismatch(toolkit: CudaToolkit, torch_cuda: str | None) -> str | None:
    """What to know of a toolkit whose major version is not that of torch's CUDA; None where they agree."""
    if torch_cuda is None or toolkit.version.split(".")[0] == torch_cuda.split(".")[0]:
        return None
    return (
        f"nvcc is of CUDA {toolkit.version}, torch of CUDA {torch_cuda}: the driver must have both; "
        f"where it has not, set CUDA_HOME to a toolkit of CUDA {torch_cuda.split('.')[0]}"
    )


def decide(
    requested: str,
    torch_cuda_version: Callable[[], str | None],
    require_extension: Callable[[], None] = require_extension_build,
    find_toolkit: Callable[[], CudaToolkit] = find_cuda_toolkit,
    find_driver: Callable[[], bool] = has_driver,
) -> Decision:
    """Which variant to build.

    Args:
        requested: a variant that is built or fails; "auto", the best that can be built; or "native", the best that
            this machine can run: no CUDA where there is no driver.
        torch_cuda_version: the CUDA version of the torch that is installed, None for a CPU build of it; asked only once
            `require_extension` has found a torch.
        require_extension: raises `Unavailable` where no extension can be built.
        find_toolkit: gives the CUDA toolkit, or raises `Unavailable`.
        find_driver: tells whether this machine has an NVIDIA driver.

    Returns:
        The variant, with a reason to print. "cuda" may be requested under a CPU build of torch: the extension links
        nothing that only a CUDA build has.

    Raises:
        ValueError: `requested` is none of the five.
        Unavailable: a variant was requested that cannot be built here.
    """
    if requested not in CHOICES:
        raise ValueError(f'LEAKYPAR_BUILD must be "auto", "native", "cuda", "cpu" or "python", not {requested!r}')
    if requested == "python":
        return Decision("python", "LEAKYPAR_BUILD=python")
    try:
        require_extension()
    except Unavailable as missing:
        if requested in ("cpu", "cuda"):
            raise
        return Decision("python", str(missing), remedy=REINSTALL)
    if requested == "cpu":
        return Decision("cpu", "LEAKYPAR_BUILD=cpu")
    if requested == "cuda":
        return Decision("cuda", "LEAKYPAR_BUILD=cuda", find_toolkit())
    torch_cuda = torch_cuda_version()
    if torch_cuda is None:
        return Decision("cpu", "the torch that is installed is a build without CUDA")
    if requested == "native" and not find_driver():
        return Decision("cpu", "this machine has no NVIDIA driver (libcuda.so.1), which LEAKYPAR_BUILD=cuda ignores")
    try:
        toolkit = find_toolkit()
    except Unavailable as missing:
        reason = f"the torch that is installed has CUDA {torch_cuda}, but {missing}"
        return Decision("cpu", reason, remedy=REINSTALL if find_driver() else None)
    return Decision("cuda", f"torch has CUDA {torch_cuda}, and a CUDA {toolkit.version} toolkit was found", toolkit)


if __name__ == "__main__":
    print(*build_requirements())
