"""How an autograd function over a batch serves `torch.vmap`: the mapped dimension folded into the batch, or a loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def mapped_inputs(names: Iterable[Any], in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> set[Any]:
    """Which inputs are mapped over. A tuple among them has a tuple for its dimensions."""
    by_name = zip(names, in_dims, inputs, strict=True)
    return {name for name, dim, value in by_name if isinstance(value, Tensor) and dim is not None}


def one_by_one(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """The rule of `vmap` that holds whatever is mapped over: a call for each element, and the results stacked."""
    mapped = mapped_inputs(range(len(inputs)), in_dims, inputs)
    parts = [value.unbind(in_dims[i]) if i in mapped else [value] * info.batch_size for i, value in enumerate(inputs)]
    results = [function.apply(*part) for part in zip(*parts, strict=True)]  # type: ignore[no-untyped-call]
    stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def size_of(value: Tensor, mapped: int | None, at: int) -> int:
    """Size of dimension `at` of a tensor as the mapped function sees it: without its dimension `mapped`."""
    return value.shape[at + (mapped is not None and mapped % value.dim() <= at)]


def folded(value: Tensor | None, mapped: int | None, at: int, B: int) -> Tensor | None:
    """The dimension that is mapped over, of size `B`, folded into the batch at `at`."""
    if value is None:
        return None
    if mapped is not None:
        return value.movedim(mapped, at).flatten(at, at + 1)
    return value.unsqueeze(at).expand(*value.shape[:at], B, *value.shape[at:]).flatten(at, at + 1)


def unfolded(
    results: tuple[Tensor, ...], batch: tuple[int | None, ...], B: int, N: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The dimension that is mapped over, out of the batch again; `batch` says where each result has it, or None."""
    batch = tuple(None if result.dim() == 1 else at for result, at in zip(results, batch, strict=True))
    unfolded = (
        result if at is None else result.reshape(*result.shape[:at], B, N, *result.shape[at + 1 :])
        for result, at in zip(results, batch, strict=True)
    )
    return tuple(unfolded), batch
