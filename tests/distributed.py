"""Two processes that train one network on halves of a batch. Apart from the tests, so that a process imports little."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

PROCESSES = 2


def gradients_of_two_processes(net: nn.Module, x: Tensor, folder: Path) -> dict[str, Tensor]:
    """The gradients of the mean output for `x` `[T, N, C]`, N even, after DistributedDataParallel has averaged them."""
    torch.save((net, x), folder / "problem.pt")
    start_processes(_work, folder)
    first, second = (torch.load(folder / f"gradients{rank}.pt") for rank in range(PROCESSES))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    return first


def start_processes(work: Callable[[int, Path], None], folder: Path) -> None:
    """Runs `work(rank, folder)` in each of `PROCESSES`, forked from one that has torch: to import it takes seconds."""
    multiprocessing.set_forkserver_preload(["torch"])
    torch.multiprocessing.start_processes(work, args=(folder,), nprocs=PROCESSES, start_method="forkserver")


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    net, x = torch.load(folder / "problem.pt", weights_only=False)
    parallel = nn.parallel.DistributedDataParallel(net)
    parallel(x.chunk(PROCESSES, dim=1)[rank]).mean().backward()
    gradients = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    torch.save(gradients, folder / f"gradients{rank}.pt")
    torch.distributed.barrier()
    # What is tested is over, and torch 2.13 aborts now and then when it takes the group and its threads down.
    os._exit(0)
