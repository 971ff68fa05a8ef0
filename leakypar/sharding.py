"""A layer's neurons over several devices, for `torch.distributed.tensor`.

Neurons do not see each other, so sharding them is exact, and the forward needs no communication: each device has its
rows of the weights, and its columns of the spikes. The gradient of the input is a sum over devices. ::

    parallelize_module(network, mesh, {"0": ShardNeurons(), "1": ShardNeurons()})

Importing this module registers the rules of the fused operators; a layer runs them with `backend="fused"`, or on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.parallel import ParallelStyle

from .module import LeakyParallel
from .ops import is_available
from .parameters import RecurrentParameters

__all__ = ["ShardNeurons"]


class ShardNeurons(ParallelStyle):
    """Shards the neurons of a `LeakyParallel` over a mesh of one dimension; the last may have fewer.

    Input and output are plain tensors, each the same on every device: `[T, N, C]` and `[T, N, H]`. With dropout the
    layer runs whole on every device, because what drops out goes by the place among all neurons; every device then has
    to draw from the same seed: `torch.manual_seed`.

    Raises:
        TypeError: the module is not a `LeakyParallel`.
        ValueError: its recurrent matrix is dense.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, LeakyParallel):
            raise TypeError(f"ShardNeurons shards a LeakyParallel, got {type(module).__name__}")
        if module.weight_hh_enable:
            raise ValueError("ShardNeurons: neurons of a dense recurrent matrix see each other: replicate the layer")
        inputs: Any = _distribute  # torch's annotation says that it returns nothing
        return distribute_module(module, device_mesh, _shard, inputs, _gather)


def _shard(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    # The recurrent matrix is read through its diagonal, which is replicated with it.
    if isinstance(module, RecurrentParameters):
        for key in ("weight_ih_l0", "decay_l0", "bias_ih_l0", "bias_hh_l0"):
            value = module._parameters.get(key)
            if value is not None:
                sharded = distribute_tensor(value.detach(), mesh, [Shard(0)])
                module.register_parameter(key, nn.Parameter(sharded, value.requires_grad))


def _distribute(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    return tuple(DTensor.from_local(each, mesh, [Replicate()], run_check=False) for each in inputs)


def _gather(module: nn.Module, outputs: Any, mesh: DeviceMesh) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.full_tensor()  # type: ignore[attr-defined]
    return tuple(each.full_tensor() for each in outputs)


def _given(values: tuple[Any, ...], placements: list[Any]) -> list[Any]:
    """The placements of the tensors that are not None, and None for all else."""
    return [None if value is None else place for value, place in zip(values, placements, strict=True)]


def _of_vector(value: Any, H: int, otherwise: Any) -> Any:
    return Shard(0) if len(value.shape) == 1 and value.shape[0] == H != 1 else otherwise


def _shard_forward(*arguments: Any) -> list[tuple[list[Any], list[Any]]]:
    tensors, others = arguments[:10], [None] * len(arguments[10:])
    replicate: list[Any] = [Replicate()]
    rules = [(replicate * 6, _given(tensors, replicate * 10) + others)]
    _, weight, _, _, _, threshold, gain, _, _, seed = tensors
    if seed is None:
        H = weight.shape[0]
        neurons, batched = Shard(0), Shard(1)
        vectors = [_of_vector(each, H, Replicate()) for each in (threshold, gain)]
        places = [Replicate(), neurons, neurons, neurons, neurons, *vectors, batched, Replicate(), None]
        outputs = [Shard(2), Shard(2), Shard(2), batched, Replicate(), Replicate()]
        rules.append((outputs, _given(tensors, places) + others))
    return rules


def _shard_backward(*arguments: Any) -> list[tuple[list[Any], list[Any]]]:
    tensors, others = arguments[:17], [None] * len(arguments[17:])
    replicate: list[Any] = [Replicate()]
    rules = [(replicate * 7, _given(tensors, replicate * 17) + others)]
    decay, threshold, gain, seed = tensors[9], tensors[12], tensors[13], tensors[16]
    if seed is None:
        H = decay.shape[0]
        neurons, columns, batched = Shard(0), Shard(2), Shard(1)
        vectors = [_of_vector(each, H, Replicate()) for each in (threshold, gain)]
        places = [
            columns,
            columns,
            batched,
            columns,
            columns,
            *replicate * 3,
            *[neurons] * 4,
            *vectors,
            batched,
            Replicate(),
            None,
        ]
        summed = [_of_vector(each, H, Partial()) for each in (threshold, gain)]
        rules.append(([Partial(), *[neurons] * 3, *summed, batched], _given(tensors, places) + others))
    return rules


if is_available("cpu"):
    register_sharding(torch.ops.leakypar.forward.default)(_shard_forward)  # type: ignore[no-untyped-call]
    register_sharding(torch.ops.leakypar.backward.default)(_shard_backward)  # type: ignore[no-untyped-call]
if torch.__version__ < "2.13":  # whose rules lack the backward of reading a diagonal

    @register_sharding(torch.ops.aten.diagonal_backward.default)  # type: ignore[no-untyped-call, untyped-decorator]
    def _replicate_diagonal(*arguments: Any) -> list[tuple[list[Any], list[Any]]]:
        return [([Replicate()], [Replicate(), *[None] * len(arguments[1:])])]
