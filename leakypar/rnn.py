"""The layer through the kernel of `nn.RNN`: the baseline, and the path that needs no extension.

`torch.rnn_relu` is what `nn.RNN` itself calls: cuDNN on CUDA, ATen elsewhere. It is called here without the module
around it, because the recurrent matrix is made anew from its diagonal at every call, and `nn.RNN` takes its weights
from parameters that it rearranges in place. So whatever lies off the diagonal is never read and gets no gradient.
Under a transform of torch.func, for which ATen's RNN has no rule, the same recurrence runs one step at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from . import onnx, rnn_operator
from .call_checks import check_call, check_spikes
from .dtypes import state_dtype
from .lengths import beyond, check_lengths
from .setting_checks import RECTIFIED, Bounds, check_flag, check_probability
from .surrogate import SpikeGrad, resolve
from .torch_state import autocast_enabled, is_tracing

__all__ = ["leaky_parallel"]


def leaky_parallel(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    threshold: Tensor | float = 1.0,
    gain: Tensor | float = 1.0,
    *,
    initial_membrane: Tensor | None = None,
    lengths: Tensor | None = None,
    spike_grad: SpikeGrad | None = None,
    dropout: float = 0.0,
    return_membrane: bool = False,
    return_state: bool = False,
    bounds: Bounds = RECTIFIED,
) -> Tensor | tuple[Tensor, ...]:
    """Runs the layer of `leakypar.reference.leaky_parallel` through the kernel of `nn.RNN`.

    The compute dtype is that of `x` and `weight`, or autocast's. The kernel carries the membrane in it from one step to
    the next, where the fused kernels carry float32 for a 16-bit layer.

    Args:
        x: input, `[T, N, C]`, or `[T, C]` for one sequence; `T` and `N` may be 0.
        weight: input weights, `[H, C]`.
        decay: `[H]`, what a membrane keeps from one step to the next; or `[H, H]`, the dense recurrent weights, where
            row i holds what neuron i takes from each other.
        bias_ih: `[H]`, or None for zeros.
        bias_hh: `[H]`, or None for zeros.
        threshold: a neuron spikes strictly above it: a number, `[]`, `[1]` or `[H]`.
        gain: the value of a spike: a number, `[]`, `[1]` or `[H]`.
        initial_membrane: membrane before the first step, `[N, H]` (`[H]` for one sequence), in the compute dtype or the
            state dtype (float64 for float64, else float32), or None for zeros.
        lengths: how many steps each sequence has, int64 `[N]` (`[]` for one sequence), from 0 to `T`; None where all
            have `T`. They are packed, as for `nn.RNN`, which waits for the device.
        spike_grad: turns membrane - threshold into spikes; None is `leakypar.surrogate.atan()`.
        dropout: probability with which each membrane value is zeroed before the threshold, the others being scaled by
            1 / (1 - dropout). The recurrence does not see it.
        return_membrane: also return the membrane at every step, before dropout.
        return_state: also return the membrane after the last step, to continue from.
        bounds: of the membrane: relu's, but for an export to ONNX.

    Returns:
        The spikes, `[T, N, H]` (`[T, H]` for one sequence), in the compute dtype. Then, if asked for, the membrane in
        the same shape and dtype, and the final membrane, `[N, H]` (`[H]`) in the state dtype, as a tuple.

    Raises:
        TypeError: an argument is not of a type above.
        ValueError: an argument does not have a shape, dtype, device or range above.
    """
    dtype = check_call(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane, dense=True)
    if lengths is not None:
        check_lengths(lengths, x)
    dropout = check_probability("dropout", dropout)
    return_membrane = check_flag("return_membrane", return_membrane)
    return_state = check_flag("return_state", return_state)
    spike = resolve(spike_grad)

    one_sequence = x.dim() == 2
    if one_sequence:
        x = x.unsqueeze(1)
        initial_membrane = None if initial_membrane is None else initial_membrane.unsqueeze(0)
        lengths = None if lengths is None else lengths.unsqueeze(0)

    # Autocast would run cuDNN's RNN in float16 whatever its dtype is, so the casts are made here.
    settled = autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if settled else nullcontext():
        # A recorded graph has the kernel as one operator, which has no rule for the transforms of torch.func.
        transformed = torch._C._are_functorch_transforms_active()
        run: Callable[..., tuple[Tensor, Tensor]] = _run
        if torch.compiler.is_compiling() and not transformed:
            run = partial(onnx.rnn, bounds=bounds) if onnx.in_export() else rnn_operator.rnn
        membrane, final_membrane = run(
            x.to(dtype),
            weight.to(dtype),
            decay.to(dtype),
            None if bias_ih is None else bias_ih.to(dtype),
            None if bias_hh is None else bias_hh.to(dtype),
            initial_membrane,
            lengths,
        )
    over = None
    if lengths is not None:
        over = beyond(lengths, x.shape[0])
        membrane = torch.where(over, final_membrane.detach().to(dtype), membrane)
        over = over.squeeze(1) if one_sequence else over
    if one_sequence:
        membrane, final_membrane = membrane.squeeze(1), final_membrane.squeeze(0)

    seen = F.dropout(membrane, dropout) if dropout > 0 else membrane
    v = seen - _row(threshold)
    spikes = check_spikes(spike(v), v) * _row(gain)
    spikes = spikes if over is None else spikes.masked_fill(over, 0)

    result = [spikes.to(dtype)]
    if return_membrane:
        result.append(membrane)
    if return_state:
        result.append(final_membrane.to(state_dtype(dtype)))
    return result[0] if len(result) == 1 else tuple(result)


def _run(
    x: Tensor,  # [T, N, C]
    weight: Tensor,  # [H, C]
    decay: Tensor,  # [H] or [H, H]
    bias_ih: Tensor | None,  # [H]
    bias_hh: Tensor | None,  # [H]
    initial_membrane: Tensor | None,  # [N, H], in the dtype of the others or the state dtype
    lengths: Tensor | None,  # [N]
) -> tuple[Tensor, Tensor]:
    """The membrane at every step `[T, N, H]`, and after the last `[N, H]`."""
    H = weight.shape[0]
    matrix = onnx.diagonal_matrix if is_tracing() else torch.diag_embed  # which not every exporter knows
    recurrent = matrix(decay) if decay.dim() == 1 else decay
    biases = [weight.new_zeros(H) if bias is None else bias for bias in (bias_ih, bias_hh)]
    initial = x.new_zeros(x.shape[1], H) if initial_membrane is None else initial_membrane
    if x.shape[0] == 0 or x.shape[1] == 0:
        # The kernel wants a step and a sequence. The recurrence broadcast over no elements has the right shape, and the
        # gradients, all zero, still reach every parameter.
        step = F.linear(initial.to(x.dtype), recurrent, biases[1])
        return torch.relu(F.linear(x, weight, biases[0]) + step), initial
    if torch._C._are_functorch_transforms_active():  # for which ATen's RNN has no rule
        over = None if lengths is None else beyond(lengths, x.shape[0])
        h = initial.to(x.dtype)
        steps = []
        for t, u_t in enumerate(F.linear(x if over is None else x.masked_fill(over, 0), weight, biases[0])):
            stepped = torch.relu(u_t + F.linear(h, recurrent, biases[1]))
            h = stepped if over is None else torch.where(over[t], h, stepped)
            steps.append(h)
        return torch.stack(steps), h
    # Recording gradients is what counts as training here, so that an evaluated layer can be differentiated too.
    membrane, final_membrane = rnn_operator.relu_rnn(
        x,
        initial.to(x.dtype),
        [weight, recurrent, *biases],
        lengths=lengths,
        records=torch.is_grad_enabled() or is_tracing(),
    )
    return membrane, final_membrane


def _row(value: Tensor | float) -> Tensor | float:
    """A scalar tensor as `[1]`: one of no dimensions would be rounded to the dtype of a 16-bit membrane beside it."""
    return value.reshape(-1) if isinstance(value, Tensor) else float(value)
