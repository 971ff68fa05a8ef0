"""The peak of a process's memory over a stretch of its work."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

RESIDENT = "growth of the process's resident memory"
ALLOCATED = "torch.cuda.max_memory_allocated"


class PeakMemory:
    """The most memory held at once since this was made: on a GPU all that torch allocated, on a CPU the growth.

    On a CPU it is meant for a process that does little else, because memory freed before is used again unseen.

    Attributes:
        kind: what is measured, in words.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kind = ALLOCATED if device.type == "cuda" else RESIDENT
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = 0
        else:
            _forget_peak()
            self._before = _peak_resident()

    def peak(self) -> int | None:
        """Bytes, or None on a system that does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        after = _peak_resident()
        return None if after is None or self._before is None else after - self._before


def _forget_peak() -> None:
    """Lowers the peak to what is held now, where the system can; elsewhere a peak of the imports may hide growth."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_resident() -> int | None:
    # Not getrusage on Linux: there a process starts with the peak of the one that started it.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
