"""The spikes as a function of the membrane that is returned beside them, so that their gradient flows through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops, surrogate
from .autograd import keeps_a_graph, scan
from .dtypes import state_dtype


def through_membrane(
    spikes: Tensor,
    membrane: Tensor,
    threshold: Tensor,
    gain: Tensor,
    seed: Tensor | None,
    dropout: float,
    spike_grad: surrogate.SpikeGrad,
) -> Tensor:
    """The kernel's spikes with a gradient that flows through the membrane.

    Args:
        spikes: `[T, N, H]`, of the kernel.
        membrane: `[T, N, H]`, returned beside them.
        threshold: `[]`, `[1]` or `[H]`.
        gain: likewise.
        seed: of the dropout, or None.
        dropout: its probability.
        spike_grad: the surrogate.
    """
    record = _recorded_spikes if keeps_a_graph() else _SpikesOfMembrane.apply
    passed: Tensor = record(spikes, membrane, threshold, gain, seed, dropout, spike_grad)
    return passed


class _SpikesOfMembrane(torch.autograd.Function):
    """The kernel's spikes as a function of the membrane that is returned beside them.

    The values are those of the kernel, which decided by the membrane before it was rounded. The gradient is computed
    in PyTorch, at the membrane as it was returned, as the kernel's own would be.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        spikes: Tensor,
        membrane: Tensor,
        threshold: Tensor,
        gain: Tensor,
        seed: Tensor | None,
        dropout: float,
        spike_grad: surrogate.SurrogateGradient,
    ) -> Tensor:
        return spikes.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, membrane, threshold, gain, seed, ctx.dropout, ctx.spike_grad = inputs
        ctx.save_for_backward(membrane, threshold, gain, seed)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        membrane, threshold, gain, seed = ctx.saved_tensors
        _, of_membrane, of_threshold, of_gain = ctx.needs_input_grad[:4]
        state = state_dtype(membrane.dtype)
        grad, seen, factors = grad_outputs[0].to(state), membrane.to(state), None
        if seed is not None:
            factors = _dropout_factors(seed, ctx.dropout, membrane)
            seen = seen * factors
        v = seen - threshold.reshape(-1).to(state)
        d_v = grad * gain.reshape(-1).to(state) * ctx.spike_grad.derivative(v)
        d_membrane = d_v if factors is None else d_v * factors
        return (
            None,
            d_membrane.to(membrane.dtype) if of_membrane else None,
            _summed(-d_v, threshold) if of_threshold else None,
            _summed(grad * (v > 0), gain) if of_gain else None,
            None,
            None,
            None,
        )


def _recorded_spikes(
    spikes: Tensor,
    membrane: Tensor,
    threshold: Tensor,
    gain: Tensor,
    seed: Tensor | None,
    dropout: float,
    spike_grad: surrogate.SpikeGrad,
) -> Tensor:
    """`_SpikesOfMembrane` in plain operations, for torch.export: the kernel's spikes, and 0 with their gradient."""
    state = state_dtype(membrane.dtype)
    seen = membrane.to(state)
    if seed is not None:
        seen = seen * _dropout_factors(seed, dropout, membrane)
    again = spike_grad(seen - threshold.reshape(-1).to(state)) * gain.reshape(-1).to(state)
    return spikes.detach() + (again - again.detach()).to(spikes.dtype)


def _summed(values: Tensor, like: Tensor) -> Tensor:
    """The sum of `[T, N, H]` over time and batch, and over the neurons too if `like` has one value for all of them."""
    summed = values.sum((0, 1))
    return (summed.sum() if like.numel() == 1 else summed).reshape(like.shape).to(like.dtype)


def _dropout_factors(seed: Tensor, dropout: float, like: Tensor) -> Tensor:
    """What the kernels multiply each element of the membrane by, `[T, N, H]` in the state dtype.

    They are the spikes of a layer whose membrane is 1 everywhere, above a threshold of 0, with their height for gain.
    """
    T, N, H = like.shape
    state = state_dtype(like.dtype)
    if dropout == 1:
        return like.new_zeros((T, N, H), dtype=state)
    zero = like.new_zeros((), dtype=state)
    inputs = ops.Inputs(
        x=like.new_empty((T, N, 0), dtype=state),
        weight=like.new_empty((H, 0), dtype=state),
        decay=like.new_zeros(H, dtype=state),
        bias_ih=like.new_ones(H, dtype=state),
        bias_hh=None,
        threshold=zero,
        gain=zero + 1 / (1 - dropout),
        initial_membrane=None,
        seed=seed,
    )
    factors, *_ = scan(inputs, ops.Settings(dropout=dropout, surrogate=ops.NO_GRADIENT), ops.SPIKES)
    return factors
