"""The most memory that a call holds beside its inputs and parameters, and whether a case fits.

On a GPU that is the caching allocator's own count. On a CPU it is measured in a fresh process, where nothing that an
earlier call left behind can serve this one: the growth of the resident set from before the call to its highest mark,
which Linux keeps. Workspaces that a library takes behind PyTorch's back are in it.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.implementations import Implementation
from leakypar.benchmark import contestant
from leakypar.measuring import DTYPES, Shape, make_problem, set_bytes, set_count

SOURCES = {"cuda": "CUDA allocator", "cpu": "resident set of a fresh process"}
RESET_HIGHEST_MARK = "5"
M_MMAP_THRESHOLD = -3  # of malloc.h
USABLE = 0.8
Result = TypeVar("Result")


def lack(shape: Shape, dtype: str, pass_: str, device: torch.device) -> str | None:
    """Says by how much rotated inputs, with the float64 reference or the hungriest rival, are too much, or None."""
    inputs, outputs = shape.rows * shape.C, shape.rows * shape.H
    reference = 8 * (inputs + 4 * outputs if pass_ == "forward" else 2 * inputs + 10 * outputs)
    timed = DTYPES[dtype].itemsize * (4 * outputs if pass_ == "forward" else inputs + 10 * outputs)
    need = set_count(shape, dtype) * set_bytes(shape, dtype) + reference + timed
    free = available(device)
    return (
        None if need <= USABLE * free else f"needs an estimated {need / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB free"
    )


def available(device: torch.device) -> int:
    """Free bytes on a GPU, or what the system could give to a new process."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _kibibytes("meminfo", "MemAvailable")


def peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    """Runs ``call`` once; returns the most bytes that were allocated at once, beyond those allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_of_this_process(call: Callable[[], object]) -> int:
    """Runs ``call`` once; returns by how many bytes the resident set grew at most."""
    gc.collect()
    libc = ctypes.CDLL(None)
    # glibc keeps freed blocks of up to 32 MiB: those of before would serve the call unseen, and those that the call
    # itself has freed would count for as long as it lasts. A block with a mapping of its own goes when it is freed.
    libc.malloc_trim(0)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 18)
    Path("/proc/self/clear_refs").write_text(RESET_HIGHEST_MARK)
    before = _kibibytes("self/status", "VmRSS")
    call()
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    return max(0, _kibibytes("self/status", "VmHWM") - before)


def in_a_fresh_process(call: Callable[..., Result], *arguments: object) -> Result:
    """What ``call`` returns, in a process of its own.

    Raises:
        RuntimeError: If that process ended before it could say.
    """
    # A server imports torch once and computes nothing: each process that it forks begins as one that just started.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context) as fresh:
        return fresh.submit(call, *arguments).result()


def peak_on_cpu(implementation: Implementation, shape: Shape, dtype: str, pass_: str, threads: int, learn: bool) -> int:
    """Bytes that the second call of a case takes at most, in this process, which should be a fresh one."""
    torch.set_num_threads(threads)
    problem = make_problem(shape, dtype, "spikes", torch.device("cpu"), learn_decay=learn, sets=1)
    problem.sets[0].x.requires_grad_(pass_ == "training")
    call, forget = contestant(implementation.build(problem), problem.sets, pass_)
    call(0)  # loads libraries, compiles, makes threads
    forget()
    return peak_of_this_process(lambda: call(0))


def _kibibytes(file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc", file).read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"memory: /proc/{file} has no {name}; the CPU benchmark runs on Linux")
    return int(found[1]) * 1024
