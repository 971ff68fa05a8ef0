"""Two processes that share one network. Apart from the tests, so that a process imports little."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, init_device_mesh

PROCESSES = 2


def trained(net: nn.Module, x: Tensor, how: str, folder: Path) -> dict[str, Tensor]:
    """The output for `x` `[T, N, C]`, the gradients of its squares' mean, and the parameters after a step of SGD.

    Args:
        net: `nn.Sequential` of layers.
        x: what every process is given.
        how: "neurons" shards the neurons of each layer, "fsdp" the parameters of each.
        folder: an empty one.
    """
    torch.save((net, x, how), folder / "problem.pt")
    torch.multiprocessing.spawn(_work, args=(folder,), nprocs=PROCESSES)
    first, second = (torch.load(folder / f"result{rank}.pt") for rank in range(PROCESSES))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    return first


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    net, x, how = torch.load(folder / "problem.pt", weights_only=False)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    if how == "neurons":
        from torch.distributed.tensor.parallel import parallelize_module

        from leakypar.sharding import ShardNeurons

        net = parallelize_module(net, mesh, {name: ShardNeurons() for name, _ in net.named_children()})
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in net:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    torch.save(step(net, x), folder / f"result{rank}.pt")
    torch.distributed.barrier()  # a process that leaves first takes its connections with it
    torch.distributed.destroy_process_group()


def step(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """See `trained`."""
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
