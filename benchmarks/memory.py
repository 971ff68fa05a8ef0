"""The most memory that a call holds beside its inputs and parameters, as PyTorch's allocators see it.

On a GPU that is the caching allocator's own count; on a CPU, the running sum of what the profiler saw allocated and
freed. Memory that a library takes behind PyTorch's back (a vendor's workspace) is in neither.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

NOT_MEASURED = "not measured: too many time steps for the profiler"
SOURCES = {"cuda": "CUDA allocator", "cpu": "CPU allocator, profiled"}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Runs ``call`` once.

    Returns:
        The largest number of bytes that were allocated at once, beyond those allocated before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before

    # Its events are read as they were recorded: the profiler's own summary of them takes many times longer.
    with profile(profile_memory=True) as profiler:
        call()
    recorded = profiler.kineto_results
    if recorded is None:
        raise RuntimeError("the profiler recorded nothing")
    events = [event for event in recorded.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak
