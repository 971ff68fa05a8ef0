"""What was built: the CUDA extension, the CPU extension or the Python package alone, and why.

Two sources are joined. The binary tells what it is. A record beside it, written by the build, tells why that variant
was chosen; it is all there is where no binary was built.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, cast

import torch  # noqa: F401  (the extension's libraries are torch's, found because torch has loaded them)

from .version import __version__

_RECORD = Path(__file__).with_name("_build.json")

Variant = Literal["cuda", "cpu", "python"]


@dataclass(frozen=True)
class BuildInfo:
    """The facts of an installed leakypar; `str()` of it is a readable table.

    Attributes:
        version: leakypar's version.
        variant: "cuda" (CUDA and CPU kernels), "cpu" (CPU kernels) or "python" (no extension: the layer runs on
            `nn.RNN`).
        reason: why this variant was built or, where an extension was built but does not load, why it does not.
        remedy: where a build that nobody asked for by name gives less than the machine could use, the command that
            builds it anew, once what `reason` misses is there. To be given in the root of the sources.
        cuda_version: version of the CUDA toolkit that compiled the kernels and whose runtime is linked in.
        architectures: compute capabilities the kernels were compiled for; "+PTX" marks one that newer devices can use.
        compiler: the C++ compiler.
        torch_version: the torch that the extension was built against.
        stable_abi_target: the oldest torch that the extension runs under.
    """

    version: str
    variant: Variant
    reason: str
    remedy: str | None = None
    cuda_version: str | None = None
    architectures: tuple[str, ...] = ()
    compiler: str | None = None
    torch_version: str | None = None
    stable_abi_target: str | None = None

    def __str__(self) -> str:
        rows = {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}
        rows["architectures"] = " ".join(self.architectures)
        return "\n".join(f"{name:<18} {value}" for name, value in rows.items() if value)


def extension() -> ModuleType:
    """The compiled module `leakypar._C`.

    Returns:
        The module; its operators are registered with torch.

    Raises:
        ImportError: it was not built, or does not load. `build_info().reason` says why in words.
    """
    return import_module("leakypar._C")


@cache
def build_info() -> BuildInfo:
    """Tells which variant of leakypar this is, why, and what it was built with.

    Returns:
        The facts, the same object at every call.
    """
    record: dict[str, str | None] = json.loads(_RECORD.read_text()) if _RECORD.exists() else {}
    try:
        binary = extension()
    except ImportError as error:
        reason, remedy = _why_python(record, error)
        return BuildInfo(version=__version__, variant="python", reason=reason, remedy=remedy)
    return BuildInfo(
        version=__version__,
        variant=cast(Variant, binary.variant),
        reason=record.get("reason") or "the build left no record of its reason",
        remedy=record.get("remedy"),
        cuda_version=binary.cuda_version,
        architectures=tuple(binary.architectures.replace(";", " ").split()),
        compiler=binary.compiler,
        torch_version=record.get("torch_version"),
        stable_abi_target=binary.stable_abi_target,
    )


@cache
def warn_of_a_lesser_build() -> None:
    """Warns, once in a process, where `build_info().remedy` says that more could have been built.

    pip shows nothing of what a build prints, and "Successfully installed" after each.
    """
    info = build_info()
    if info.remedy is not None:
        built = {"python": "without its extension, and runs on nn.RNN", "cpu": "without CUDA kernels"}[info.variant]
        warnings.warn(f"leakypar was built {built}: {info.reason}. Then: {info.remedy}", stacklevel=3)


_REINSTALL = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps ."


def _why_python(record: dict[str, str | None], error: ImportError) -> tuple[str, str | None]:
    """The reason for having no extension, and the remedy."""
    if not record:
        return "the sources were never built", _REINSTALL
    if record["variant"] == "python":
        return str(record["reason"]), record.get("remedy")
    return f"the {record['variant']} extension was built but does not load: {error}", _REINSTALL
