"""Two processes that share networks. Apart from the tests, so that a process imports little."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from leakypar.sharding import ShardNeurons

from ..distributed import PROCESSES, start_processes


class Problem(NamedTuple):
    """A network of layers, an input `[T, N, C]` that every process is given, and what is shared.

    `how`: "neurons" shards the neurons of each layer, "fsdp" the parameters of each, "fsdp of rnn" those of its `rnn`.
    """

    net: nn.Sequential
    x: Tensor
    how: str


def trained(problems: dict[str, Problem], folder: Path) -> dict[str, dict[str, Tensor]]:
    """For each, the output, the gradients of its squares' mean, and the parameters after a step of SGD.

    Args:
        problems: which one pair of processes trains one after the other: to start one takes longer than all of them.
        folder: an empty one.
    """
    torch.save(problems, folder / "problems.pt")
    start_processes(_work, folder)
    first, second = (torch.load(folder / f"results{rank}.pt") for rank in range(PROCESSES))
    for problem, result in first.items():
        for name, value in result.items():
            assert torch.equal(value, second[problem][name]), f"{problem}: {name}"
    results: dict[str, dict[str, Tensor]] = first
    return results


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    problems = torch.load(folder / "problems.pt", weights_only=False)
    results = {name: step(_shared(net, how, mesh), x) for name, (net, x, how) in problems.items()}
    torch.save(results, folder / f"results{rank}.pt")
    torch.distributed.barrier()  # a process that leaves first takes its connections with it
    torch.distributed.destroy_process_group()


def _shared(net: nn.Module, how: str, mesh: DeviceMesh) -> nn.Module:
    if how == "neurons":
        return parallelize_module(net, mesh, {name: ShardNeurons() for name, _ in net.named_children()})
    for layer in net.children():
        if how == "fsdp of rnn":
            fully_shard(layer.rnn, mesh=mesh, reshard_after_forward=False)
        else:
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def step(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """See `trained`. Dropout draws from the same seed everywhere."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    output = net(x)
    output.pow(2).mean().backward()
    result = {"output": output.detach(), "grad of x": x.grad}
    result |= {f"grad of {name}": value.grad for name, value in net.named_parameters() if value.grad is not None}
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    result |= {name: value.detach() for name, value in net.named_parameters()}
    return {name: copy.deepcopy(_whole(value)) for name, value in result.items()}


def _whole(value: Any) -> Tensor:
    whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole
