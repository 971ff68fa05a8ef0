"""Where and with what a run was made; torch's ``collect_env`` asks the machine."""

from __future__ import annotations

import os
import platform
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import collect_env

import leakypar

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Environment:
    """The columns that are the same in every row of a run; one that does not exist, as a CPU's driver, is ``none``.

    ``load`` is the system's average over the last minute.
    """

    device_type: str
    device: str
    driver: str
    torch: str
    cuda: str
    python: str
    leakypar: str
    commit: str
    load: float


def describe(device: torch.device) -> Environment:
    """Reads the facts of this machine."""
    run, on_gpu = collect_env.run, device.type == "cuda"
    found = re.search(r"Model name:\s*(.+)", str(collect_env.get_cpu_info(run)))  # type: ignore[no-untyped-call]
    cpu = found[1].strip() if found else platform.processor() or platform.machine()
    git = f"git -C {shlex.quote(str(ROOT))}"
    code, commit, _ = run(f"{git} rev-parse --short=12 HEAD")  # type: ignore[no-untyped-call]
    # What runs have written is no change of what is measured.
    changed = f"{git} status --porcelain --untracked-files=no -- . ':!benchmarks/results'"
    _, changes, _ = run(changed)  # type: ignore[no-untyped-call]
    return Environment(
        device_type=device.type,
        device=torch.cuda.get_device_name(device) if on_gpu else cpu,
        driver=(collect_env.get_nvidia_driver_version(run) or "unknown") if on_gpu else "none",  # type: ignore[no-untyped-call]
        torch=torch.__version__,
        cuda=torch.version.cuda or "none",
        python=platform.python_version(),
        leakypar=leakypar.__version__,
        commit="unknown" if code else f"{commit}{'-dirty' if changes else ''}",
        load=round(os.getloadavg()[0], 2),
    )


def set_tf32(allowed: bool) -> None:
    """Allows or forbids TF32 in cuBLAS and cuDNN alike, so that every implementation works at the same precision."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
