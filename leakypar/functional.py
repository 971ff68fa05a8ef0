"""`leaky_parallel`: the layer as a function, differentiable through the fused kernels."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from . import launch_plan, ops, surrogate, tuning
from .autograd import is_plain, scan
from .call_checks import check_call, check_spikes
from .dtypes import state_dtype
from .lengths import beyond, check_lengths
from .setting_checks import RECTIFIED, Bounds, check_bounds, check_flag, check_optional_flag, check_probability
from .spikes_of_membrane import through_membrane
from .torch_state import is_tracing

_package: Any = sys.modules[__package__]  # whose `autotune` is a user's to set


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
    spike_grad: surrogate.SpikeGrad | None = None,
    dropout: float = 0.0,
    membrane_bounds: Bounds = RECTIFIED,
    return_membrane: bool = False,
    return_state: bool = False,
    recompute: bool = False,
    binary_input: bool | None = None,
    plan: launch_plan.Plan | launch_plan.Choice | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""A layer of leaky integrate-and-fire neurons over a whole sequence, on the fused kernels.

    .. math::

        h_t = \mathrm{clamp}(w h_{t-1} + W x_t + b_{ih} + b_{hh}), \qquad
        S_t = \mathrm{gain} \cdot 1[\mathrm{dropout}(h_t) - \mathrm{threshold} > 0]

    as `leakypar.reference.leaky_parallel` specifies it. The compute dtype is that of `x` and `weight`, or autocast's;
    the membrane is carried from step to step in float32 (float64 for float64).

    Args:
        x: input, `[T, N, C]`, or `[T, C]` without a batch; any strides.
        weight: input weights, `[H, C]`.
        decay: what a membrane keeps from one step to the next, `[H]`, any sign and size, any stride.
        bias_ih: `[H]`, or None.
        bias_hh: `[H]`, or None.
        threshold: a number, or a tensor `[]`, `[1]` or `[H]`. A neuron spikes strictly above it.
        gain: the height of a spike, likewise.
        initial_membrane: membrane before the first step, `[N, H]` (`[H]` without a batch), in the compute dtype or the
            state dtype; None for zeros.
        lengths: how many steps each sequence has, int64 `[N]` (`[]` without a batch) on the device of `x`, from 0 to
            `T`; None where all have `T`. After its last step a sequence spikes no more, its membrane is held, and no
            gradient comes from there, whatever `x` is there; its final membrane is its own.
        spike_grad: a surrogate of `leakypar.surrogate`, None for `atan()`, or any callable from membrane - threshold to
            spikes. SSO, custom surrogates and callables run in PyTorch, on the membrane that the kernels return.
        dropout: probability that a membrane value is zeroed before the threshold, in [0, 1]; survivors are scaled by
            1 / (1 - p). The recurrence does not see it. Each call draws one number from PyTorch's generator for the
            device of `x`, and the kernels derive from it, in both directions, what drops out: no mask is kept.
        membrane_bounds: what the membrane is clamped to after each step: numbers (lower, upper), lower < upper.
            `(0, inf)` is relu, `(-inf, inf)` no bound. The derivative is 1 strictly between them, and 0 at and beyond
            them; a 16-bit membrane counts as at a bound if both round to the same number.
        return_membrane: also return the membrane of every step, before dropout. The spikes' gradient then flows through
            it, so that hooks and `retain_grad` see it; that costs the backward one more pass, in PyTorch.
        return_state: also return the membrane after the last step, to continue from.
        recompute: keep for the backward only what the membrane is rebuilt from, a checkpoint every
            `leakypar.launch_plan.checkpoint_interval` steps: a sixteenth of the membrane's memory at most, for one more
            product of input and weights. The spike must run in the kernels.
        binary_input: whether `x` is zeros and one other value, as spikes of one gain are. Training then keeps it as
            bits, a 32nd of float32, and a CPU multiplies it by additions where few are ones. None: a CPU finds out, and
            a GPU, which would have to be waited for, takes it for dense. True: promised, which a CPU checks at once,
            and a GPU asserts without waiting, of what lies beyond the lengths too. False: not looked at.
        plan: "sequential" or "look_back" to force the scans, "project_scan" to force that forward, "events" to have a
            CPU multiply by additions whatever is binary (see `leakypar.Plan`), a `leakypar.Plan` to force everything,
            None to let sizes decide.

    Returns:
        Spikes `[T, N, H]` (`[T, H]` without a batch) in the compute dtype; then, if asked for, the membrane in the same
        shape and dtype, and the final membrane `[N, H]` (`[H]`) in the state dtype, as a tuple.

    Raises:
        RuntimeError: the kernels were not built for the device of `x`; or a second derivative is asked for.
        TypeError: an argument is not of a type named above.
        ValueError: a shape, dtype, device or number does not fit; or `recompute` is asked for where the spike runs in
            PyTorch, which keeps the membrane; or, on a CPU, `binary_input` is True for another `x`.
    """
    return run(
        x,
        weight,
        decay,
        bias_ih,
        bias_hh,
        threshold,
        gain,
        initial_membrane=initial_membrane,
        lengths=lengths,
        spike_grad=surrogate.resolve(spike_grad),
        dropout=check_probability("dropout", dropout),
        bounds=check_bounds("membrane_bounds", membrane_bounds),
        return_membrane=return_membrane,
        return_state=return_state,
        recompute=check_flag("recompute", recompute),
        binary_input=check_optional_flag("binary_input", binary_input),
        request=launch_plan.request(plan, recompute=recompute, binary_input=binary_input),
    )


def run(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    threshold: Tensor | float,
    gain: Tensor | float,
    *,
    initial_membrane: Tensor | None,
    lengths: Tensor | None,
    spike_grad: surrogate.SpikeGrad,
    dropout: float,
    bounds: Bounds,
    return_membrane: bool,
    return_state: bool,
    recompute: bool,
    binary_input: bool | None,
    request: launch_plan.Request,
) -> Tensor | tuple[Tensor, ...]:
    """`leaky_parallel` with its settings resolved, as the module keeps them."""
    lower, upper = bounds
    dtype = check_call(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane)
    if lengths is not None:
        check_lengths(lengths, x)
    return_membrane = check_flag("return_membrane", return_membrane)
    return_state = check_flag("return_state", return_state)
    if not ops.is_available(x.device.type):
        raise RuntimeError(ops.unavailable_reason(x.device.type))
    if x.dtype != dtype or weight.dtype != dtype:  # under autocast
        x, weight = x.to(dtype), weight.to(dtype)
    if not isinstance(threshold, Tensor):
        threshold = _filled(threshold, x)
    if not isinstance(gain, Tensor):
        gain = _filled(gain, x)
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(1)
        initial_membrane = None if initial_membrane is None else initial_membrane.unsqueeze(0)
        lengths = None if lengths is None else lengths.unsqueeze(0)

    kernel = surrogate.kernel_of(spike_grad)
    in_kernel = kernel is not None
    if recompute and not in_kernel:
        raise ValueError(
            "recompute must be False where the spike runs in PyTorch, which keeps the membrane: got recompute=True "
            f"with spike_grad={spike_grad!r}. The kernels have the surrogates of leakypar.surrogate, but for SSO and "
            "custom_surrogate, and those of snntorch.surrogate that are equal to one of them with plain numbers"
        )
    taken = ops.SPIKES if in_kernel else ops.MEMBRANE
    if return_membrane:
        taken |= ops.MEMBRANE
    if return_state:
        taken |= ops.FINAL_MEMBRANE
    free = request[:5] == launch_plan.AUTOMATIC[:5] and not recompute
    if _package.autotune and free and not torch.compiler.is_compiling():
        tuning.at_first_call(ops.Inputs(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane))
    seed = torch.randint(2**63 - 1, (), device=x.device) if in_kernel and dropout > 0 else None
    lengths = None if lengths is None else lengths.contiguous()
    inputs = ops.Inputs(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane, lengths, seed)
    settings = ops.Settings(
        (None if math.isinf(lower) else lower, None if math.isinf(upper) else upper),
        dropout,
        kernel,
        launch_plan.checkpoint_interval(x.shape[0], x.shape[1], dtype) if recompute else None,
        request,
        binary_input is True,
    )
    spikes, membrane, _, final_membrane = scan(inputs, settings, taken)
    in_pytorch = kernel is None
    if kernel is None:
        seen = torch.nn.functional.dropout(membrane, dropout) if dropout > 0 else membrane
        v = seen - threshold.reshape(-1)  # a scalar tensor would be rounded to the membrane's dtype before it is taken
        spikes = (check_spikes(spike_grad(v), v) * gain).to(dtype)
    elif (
        return_membrane
        and kernel[0] != surrogate.disabled.kind
        and (membrane.requires_grad or is_tracing() or not is_plain())
    ):
        spikes = through_membrane(spikes, membrane, threshold, gain, seed, dropout, spike_grad)
        in_pytorch = True
    if in_pytorch and lengths is not None:
        spikes = spikes.masked_fill(beyond(lengths, x.shape[0]), 0)
    results = [spikes]
    if return_membrane:
        results.append(membrane)
    if return_state:
        results.append(final_membrane)
    if not batched:
        # The batch dimension is 1 in spikes and membrane [T, 1, H], 0 in the final membrane [1, H].
        results = [result.squeeze(-2) for result in results]
    return results[0] if len(results) == 1 else tuple(results)


def _filled(value: float, like: Tensor) -> Tensor:
    """A number where the kernels can read it. A fill does not wait for the device, as a copy from the host would."""
    return like.new_full((), float(value), dtype=state_dtype(like.dtype))
