"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import leakypar

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """The columns that are the same in every row of a run; ``load`` is the system's average over the last minute."""

    device_type: str
    device: str
    driver: str
    torch: str
    cuda: str
    python: str
    leakypar: str
    commit: str
    threads: int
    load: float


def describe(device: torch.device) -> Environment:
    """Reads the facts of this machine; one that does not exist, such as a CPU's driver, is ``none``."""
    return Environment(
        device_type=device.type,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        driver=_driver() if device.type == "cuda" else "none",
        torch=torch.__version__,
        cuda=torch.version.cuda or "none",
        python=platform.python_version(),
        leakypar=leakypar.__version__,
        commit=_commit(),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
    )


def stable_name(device: torch.device) -> str:
    """A file's stem for results from this device: ``cpu``, or a GPU's name, such as ``nvidia-h100-80gb-hbm3``."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def set_tf32(allowed: bool) -> None:
    """Allows or forbids TF32 in cuBLAS and cuDNN alike, so that every implementation works at the same precision."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _driver() -> str:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] or "unknown"


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _output(*command: str) -> str:
    """What a command prints, stripped; empty where the command is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
