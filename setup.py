"""Builds leakypar: the CUDA extension, the CPU extension, or the Python package alone.

Set `LEAKYPAR_BUILD` to "cuda", "cpu" or "python" to have that variant or a failure; "auto" (the default) takes the
first of them that this machine and the torch that is installed can build, "native" (what `make` takes) the first that
this machine can also run. `TORCH_CUDA_ARCH_LIST` and `MAX_JOBS` mean
what they mean for every torch extension. What was built, and why, is printed; `leakypar.build_info()` tells it later.

The extension uses torch's stable ABI and links only what every build of torch has, so it is not a torch
`CUDAExtension`: that would link libtorch_cuda, and a binary that does cannot be loaded under a CPU build of torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Older ones read the licence of pyproject.toml as an error, and say so in a hundred lines.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f'leakypar: setuptools {setuptools.__version__} is too old to build it: pip install "setuptools>=77"')

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build front end runs this file without its folder on the path

from toolchain import (  # noqa: E402
    CudaToolkit,
    Decision,
    Unavailable,
    architectures,
    decide,
    mismatch,
    stable_abi_define,
)

OPTIMISED_CXX20 = ["-std=c++20", "-O3"]
HOST_FLAGS = [
    "-g0",  # Python's own flags ask for debug information
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # the CPU kernels give the same bits on a machine with fused multiply-add and one without
    "-Wall",
    "-Wextra",
]

# torch adds macros that hide the operators of __half and __nv_bfloat16; a kernel means the same with and without torch.
HALF_OPERATORS = [
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
]


def torch_cuda_version() -> str | None:
    import torch

    return torch.version.cuda


def torch_version() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return str(torch.__version__)


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


def extension(toolkit: CudaToolkit | None) -> Extension:
    """`leakypar._C`, with the CUDA kernels where there is a toolkit."""
    import pybind11
    from torch.utils import cpp_extension

    # System include directories keep warnings to our own code. They go to the host compiler alone: a .cu that includes
    # a torch header does not compile.
    system = [pybind11.get_include(), *cpp_extension.include_paths()]
    arguments = {
        "sources": sources("torch/ops.cpp", "torch/module.cpp", "cpu/*.cpp"),
        "define_macros": [tuple(stable_abi_define().split("="))],
        "library_dirs": cpp_extension.library_paths(),
        "libraries": ["c10", "torch_cpu"],
        "extra_link_args": [],
    }
    nvcc_flags: list[str] = []
    if toolkit is not None:
        cpp_extension.CUDA_HOME = str(toolkit.root)  # torch looks beside the nvcc on the path, which may be a wrapper
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
        # GCC breaks when its own /usr/include, where some distributions put CUDA's headers, is named to it.
        system += [str(folder) for folder in toolkit.include_directories if folder != Path("/usr/include")]
        arguments["sources"] += sources("torch/cuda_context.cpp", "cuda/*.cu")
        arguments["define_macros"] += [
            ("LEAKYPAR_WITH_CUDA", None),
            ("LEAKYPAR_CUDA_ARCHITECTURES", f'"{architectures()}"'),
        ]
        arguments["library_dirs"] += map(str, toolkit.library_directories)
        arguments["libraries"] += ["cudart_static", "dl", "rt", "pthread"]
        # The runtime's symbols stay inside: torch's own copy of it, of another version perhaps, is in the process too.
        arguments["extra_link_args"] += ["-Wl,--exclude-libs,ALL"]
        threads = os.environ.get("NVCC_THREADS", "2")
        host_flags = [f"-Xcompiler={flag}" for flag in HOST_FLAGS]
        nvcc_flags = [*OPTIMISED_CXX20, f"--threads={threads}", *host_flags, *HALF_OPERATORS]
    isystem = [argument for folder in system for argument in ("-isystem", folder)]
    return Extension(
        "leakypar._C",
        language="c++",
        extra_compile_args={"cxx": [*OPTIMISED_CXX20, *HOST_FLAGS, *isystem], "nvcc": nvcc_flags},
        **arguments,
    )


def choose() -> Decision:
    try:
        return decide(os.environ.get("LEAKYPAR_BUILD", "auto"), torch_cuda_version)
    except (Unavailable, ValueError) as error:
        sys.exit(f"leakypar: cannot build what LEAKYPAR_BUILD asks for: {error}")


def announce(decision: Decision) -> None:
    title = {"cuda": "the CUDA extension", "cpu": "the CPU extension", "python": "the pure-Python package"}
    lines = [f"leakypar: building {title[decision.variant]}", f"because: {decision.reason}"]
    if decision.variant == "cuda":
        lines.append(f"architectures: {architectures()}")
        assert decision.toolkit is not None
        if note := mismatch(decision.toolkit, torch_cuda_version()):
            lines.append(f"warning: {note}")
    if decision.variant == "python":
        lines.append("Without the extension the layer runs on nn.RNN.")
    if decision.remedy is not None:
        lines.append(f"once that is mended: {decision.remedy}")
    rule = "=" * max(map(len, lines))
    print("\n".join([rule, *lines, rule]), file=sys.stderr, flush=True)


decision = choose()
ext_modules: list[Extension] = []
BuildExtension = build_ext
if decision.variant != "python":
    from torch.utils.cpp_extension import BuildExtension

    ext_modules = [extension(decision.toolkit)]
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))

# Objects and staged files of different variants, versions of torch and Pythons stay apart, so that going from one
# environment to another neither mixes them nor compiles anything twice.
BUILD_BASE = f"build/{decision.variant}-torch{torch_version() or '-none'}-{sys.implementation.cache_tag}"


def write_record(package: Path) -> None:
    """Writes what `leakypar.build_info()` reads beside the binary (or in its place)."""
    record = {
        "variant": decision.variant,
        "reason": decision.reason,
        "remedy": decision.remedy,
        "torch_version": torch_version() if ext_modules else None,
    }
    if package == ROOT / "leakypar" and not ext_modules:
        for stale in package.glob("_C.*.so"):  # it would be loaded, and the record would lie
            stale.unlink()
    package.mkdir(parents=True, exist_ok=True)
    (package / "_build.json").write_text(json.dumps(record, indent=2) + "\n")


class BuildPython(build_py):
    def run(self) -> None:
        super().run()
        write_record(ROOT / "leakypar" if self.editable_mode else Path(self.build_lib, "leakypar"))


class BuildNative(BuildExtension):
    def finalize_options(self) -> None:
        # An editable install names a temporary folder for objects; in a lasting one, ninja rebuilds only what changed.
        self.build_temp = str(ROOT / BUILD_BASE / "objects")
        super().finalize_options()

    def run(self) -> None:
        if decision.variant == "cuda" and torch_cuda_version() is None:
            self.forget_stale_kernels()
        super().run()
        write_record(ROOT / "leakypar" if self.inplace else Path(self.build_lib, "leakypar"))

    def forget_stale_kernels(self) -> None:
        # A torch without CUDA does not have ninja follow the headers of a .cu: recompile every one that a header is
        # newer than.
        headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
        newest = max(header.stat().st_mtime_ns for header in headers)
        for kernel in Path(self.build_temp, "csrc", "cuda").glob("*.o"):
            if kernel.stat().st_mtime_ns < newest:
                kernel.unlink()


if any(command.startswith(("build", "bdist", "editable", "develop", "install")) for command in sys.argv[1:]):
    announce(decision)

setup(
    ext_modules=ext_modules,
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
    options={"build": {"build_base": BUILD_BASE}},
)
