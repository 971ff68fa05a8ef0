r"""The specification of the layer: one loop over time, in PyTorch. Every implementation is tested against it.

Sizes are `T` time steps, `N` batch, `C` input features and `H` neurons. With `u` the projected input, `h`
the membrane and `S` the spikes:

.. math::

    u_t &= W x_t + b_{ih} + b_{hh} \\
    h_t &= \mathrm{clamp}(w \, h_{t-1} + u_t, \mathrm{lower}, \mathrm{upper}) \\
    S_t &= \mathrm{gain} \cdot 1[\mathrm{dropout}(h_t) - \mathrm{threshold} > 0]

With bounds of 0 and infinity, which is relu, this is what `snntorch.LeakyParallel` computes (version 1.0.0, its code),
with dropout where later versions put it. Autograd differentiates it: the clamp has derivative 1 strictly between its
bounds and 0 elsewhere, and the spike that of its surrogate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .call_checks import check_call, check_mask
from .dtypes import state_dtype
from .lengths import beyond, check_lengths
from .setting_checks import RECTIFIED, Bounds, check_bounds, check_flag
from .surrogate import SpikeGrad, disabled, resolve

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
    dropout_mask: Tensor | None = None,
    surrogate_disable: bool = False,
    membrane_bounds: Bounds = RECTIFIED,
    return_membrane: bool = False,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Runs the layer over a whole sequence.

    The compute dtype is that of `x` and `weight`, or autocast's where autocast is on. `x` and `weight` are rounded to
    it, and so are the spikes and the membrane that are returned. Everything between is in the state dtype: float64 for
    float64, float32 for the others. So a spike is decided by the membrane before it is rounded.

    Args:
        x: input, `[T, N, C]`, or `[T, C]` for one sequence. `T` and `N` may be 0.
        weight: input weights, `[H, C]`.
        decay: what a membrane keeps from one step to the next, `[H]`, of any sign and magnitude; or dense recurrent
            weights, `[H, H]`, where row i holds what neuron i takes from every neuron.
        bias_ih: `[H]`, or None for zeros.
        bias_hh: `[H]`, or None for zeros.
        threshold: A neuron spikes strictly above it. A number, `[]`, `[1]` or `[H]`.
        gain: the value of a spike (snntorch's `graded_spikes_factor`). A number, `[]`, `[1]` or `[H]`.
        initial_membrane: membrane before the first step, `[N, H]` (`[H]` for one sequence), or None for zeros.
        lengths: how many steps each sequence has, int64 `[N]` (`[]` for one sequence), from 0 to `T`; None where all
            have `T`. After its last step a sequence spikes no more, its membrane is held, and no gradient comes from
            there, whatever `x` is there.
        spike_grad: turns membrane - threshold, in the state dtype, into spikes. None is `surrogate.atan()`.
        dropout_mask: factors of the membrane before the threshold, in the shape of the spikes, or None for ones. The
            recurrence does not see them.
        surrogate_disable: the spikes pass no gradient to the membrane and the threshold, whatever `spike_grad` is.
        membrane_bounds: what the membrane is clamped to after each step: numbers (lower, upper), lower < upper, rounded
            to the state dtype. An infinite one is no bound.
        return_membrane: also return the membrane at every step, before dropout.
        return_state: also return the membrane after the last step, in the state dtype, to continue from.

    Returns:
        The spikes, `[T, N, H]` (`[T, H]` for one sequence). Then, if asked for, the membrane in the same shape, and
        the final membrane in the shape of `initial_membrane`, as a tuple.

    Raises:
        TypeError: an argument is not of a type named above.
        ValueError: an argument does not have a shape, dtype or device named above.
    """
    dtype = check_call(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane, dense=True)
    over = None
    if lengths is not None:
        check_lengths(lengths, x)
        over = beyond(lengths, x.shape[0])
        x = x.masked_fill(over, 0)
    if dropout_mask is not None:
        check_mask("dropout_mask", dropout_mask, [*x.shape[:-1], weight.shape[0]], x)
    surrogate_disable = check_flag("surrogate_disable", surrogate_disable)
    return_membrane = check_flag("return_membrane", return_membrane)
    return_state = check_flag("return_state", return_state)
    device, state = x.device, state_dtype(dtype)

    decay = decay.to(state)
    threshold, gain = (torch.as_tensor(value, dtype=state, device=device) for value in (threshold, gain))
    lower, upper = (
        None if math.isinf(bound) else torch.tensor(bound, dtype=state, device=device)
        for bound in check_bounds("membrane_bounds", membrane_bounds)
    )
    spike = resolve(spike_grad)
    if surrogate_disable:
        spike = disabled()

    with torch.autocast(device.type, enabled=False):
        u = F.linear(x.to(dtype).to(state), weight.to(dtype).to(state))
        for bias in (bias_ih, bias_hh):
            u = u if bias is None else u + bias.to(state)

        h = u.new_zeros(u.shape[1:]) if initial_membrane is None else initial_membrane.to(state)
        steps = []
        for t, u_t in enumerate(u):
            stepped = _clamp((decay * h if decay.dim() == 1 else F.linear(h, decay)) + u_t, lower, upper)
            h = stepped if over is None else torch.where(over[t], h, stepped)
            steps.append(h)
        membrane = torch.stack(steps) if steps else u
        membrane = membrane if over is None else torch.where(over, membrane.detach(), membrane)

    seen = membrane if dropout_mask is None else membrane * dropout_mask.to(state)
    spikes = spike(seen - threshold) * gain
    spikes = spikes if over is None else spikes.masked_fill(over, 0)

    result = [spikes.to(dtype)]
    if return_membrane:
        result.append(membrane.to(dtype))
    if return_state:
        result.append(h)
    return result[0] if len(result) == 1 else tuple(result)


def _clamp(h: Tensor, lower: Tensor | None, upper: Tensor | None) -> Tensor:
    """`h` held between the bounds. Neither comparison is true of NaN, which stays, and passes gradients."""
    if lower is not None:
        h = torch.where(h <= lower, lower, h)
    return h if upper is None else torch.where(h >= upper, upper, h)
