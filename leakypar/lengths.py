"""Sequences of a batch that end before its longest does: their lengths, and a `PackedSequence` of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def check_lengths(lengths: object, x: Tensor) -> None:
    """Each sequence's own number of steps, int64 `[N]` (`[]` for one sequence) on the device of `x`.

    Raises:
        TypeError: it is not a tensor of int64.
        ValueError: its shape or device does not fit; or, on a CPU, a length is not from 0 to `T`. On a GPU that is an
            assertion of the device, which nothing waits for. What is compiled or mapped over is not looked at: there a
            length below 0 counts as 0, and one above `T` as `T`.
    """
    shape = list(x.shape[1:-1])
    kind = "[N]" if shape else "[]"
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be an int64 tensor {kind}, got {type(lengths).__name__}")
    if lengths.dtype != torch.int64 or lengths.layout != torch.strided:
        raise TypeError(f"lengths must be a dense tensor of torch.int64, got {lengths.dtype} of {lengths.layout}")
    if list(lengths.shape) != shape:
        raise ValueError(
            f"lengths must have shape {kind} = {shape} for x of shape {list(x.shape)}, got {list(lengths.shape)}"
        )
    if lengths.device != x.device:
        raise ValueError(f"lengths must be on the device of x, {x.device}, got {lengths.device}")
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or lengths.is_meta:
        return
    T = x.shape[0]
    inside = ((lengths >= 0) & (lengths <= T)).all()
    if lengths.is_cuda:
        torch._assert_async(inside, f"lengths must be from 0 to T = {T}")
    elif not inside:
        raise ValueError(f"lengths must be from 0 to T = {T}, got from {int(lengths.min())} to {int(lengths.max())}")


def beyond(lengths: Tensor, T: int) -> Tensor:
    """Which steps lie beyond each sequence's own, `[T, N, 1]` (`[T, 1]` for one sequence)."""
    steps = torch.arange(T, device=lengths.device)
    return steps.reshape(T, *[1] * (lengths.dim() + 1)) >= lengths.unsqueeze(-1)


def run_packed(
    run: Callable[..., Any],
    x: PackedSequence,
    initial_membrane: Tensor | None,
    lengths: Tensor | None,
    *,
    return_membrane: bool,
    return_state: bool,
) -> Any:
    """A layer over a `PackedSequence`: padded, run with the lengths that it has, and packed again as it was.

    Args:
        run: a layer's forward.
        x: data `[all steps, C]`; sorted or not.
        initial_membrane: `[N, H]`, in the order that the sequences had before they were packed, or None.
        lengths: None.
        return_membrane: as the layer has it; the membrane is a `PackedSequence` too.
        return_state: as the layer has it; the final membrane is in the order of the initial one.
    """
    if lengths is not None:
        raise ValueError("lengths must be None for a PackedSequence, which has its own")
    order, back = x.sorted_indices, x.unsorted_indices
    # As the data lies, longest first: it is packed again without being sorted.
    padded, own = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))
    if initial_membrane is not None and order is not None:
        initial_membrane = initial_membrane.index_select(0, order)
    outputs = run(
        padded,
        initial_membrane=initial_membrane,
        lengths=own.to(padded.device),
        return_membrane=return_membrane,
        return_state=return_state,
    )
    results = list(outputs) if isinstance(outputs, tuple) else [outputs]
    final = results.pop() if return_state else None
    packed = [PackedSequence(pack_padded_sequence(result, own).data, x.batch_sizes, order, back) for result in results]
    if final is not None:
        packed.append(final if back is None else final.index_select(0, back))
    return packed[0] if len(packed) == 1 else tuple(packed)
