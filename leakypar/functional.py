"""`leaky_parallel`: the layer as a function, differentiable through the fused kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import launch_plan, ops, surrogate, validation


class _NoSecondDerivative(torch.autograd.Function):
    """The identity on gradients, where a graph through them is being recorded: differentiating it is an error.

    `once_differentiable` would let a gradient pass as a constant where the incoming one is: silently wrong. `token` is
    an output of the call whose gradients these are, so every input of that call is reached through this error.
    """

    @staticmethod
    def forward(ctx: Any, token: Tensor, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "leakypar: the fused kernels have no second derivative; leakypar.reference.leaky_parallel has one"
        )


class _LeakyParallel(torch.autograd.Function):
    """The two operators joined.

    Returns spikes, membrane and last membrane, None for each that is not wanted, and a tensor without elements that
    stands for them all in `_NoSecondDerivative`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        decay: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        threshold: Tensor,
        gain: Tensor,
        initial_membrane: Tensor | None,
        seed: Tensor | None,
        dropout: float,
        kernel_surrogate: tuple[int, float, float] | None,
        want_membrane: bool,
        want_final: bool,
        recompute: bool,
        request: launch_plan.Request,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
        interval = launch_plan.checkpoint_interval(x.shape[0], x.shape[1], x.dtype) if recompute else None
        spikes, membrane, checkpoints, final_membrane = ops.forward(
            x,
            weight,
            decay,
            bias_ih,
            bias_hh,
            threshold,
            gain,
            initial_membrane,
            seed=seed,
            dropout=dropout,
            outputs=ops.SPIKES * (kernel_surrogate is not None)
            + ops.MEMBRANE * (want_membrane or not recompute)  # the backward scan reads it
            + ops.CHECKPOINTS * recompute
            + ops.FINAL_MEMBRANE * want_final,
            request=request,
            checkpoint_interval=interval,
        )
        needs = ctx.needs_input_grad
        token = x.new_empty(0) if recompute else checkpoints  # which are not wanted, so they are as empty
        # What a gradient does not need is not kept alive for it.
        ctx.save_for_backward(
            x if needs[1] or recompute else None,
            weight if needs[0] or recompute else None,
            decay,
            bias_ih if recompute else None,
            bias_hh if recompute else None,
            threshold,
            gain,
            initial_membrane,
            seed,
            None if recompute else membrane,
            checkpoints if recompute else None,
            token,
        )
        ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in (bias_ih, bias_hh)]
        ctx.dropout = dropout
        ctx.kernel_surrogate = kernel_surrogate
        ctx.request = request
        ctx.interval = interval
        ctx.set_materialize_grads(False)
        if kernel_surrogate is not None and kernel_surrogate[0] == surrogate.disabled().kind and not needs[6]:
            ctx.mark_non_differentiable(spikes)
        return (
            None if kernel_surrogate is None else spikes,
            membrane if want_membrane else None,
            final_membrane if want_final else None,
            token,
        )

    @staticmethod
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None, grad_last: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grads = _LeakyParallel.gradients(ctx, grad_spikes, grad_membrane, grad_last)
        if torch.is_grad_enabled():
            *_, token = ctx.saved_tensors
            grads = _NoSecondDerivative.apply(token, *grads)  # type: ignore[no-untyped-call]
        return (*grads, *(None,) * 7)

    @staticmethod
    def gradients(
        ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None, grad_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, decay, bias_ih, bias_hh, threshold, gain, initial, seed, membrane, checkpoints, _ = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if grad_spikes is None and grad_membrane is None and grad_last is None:
            return (None,) * 8
        d_x, d_weight, d_decay, d_bias, d_threshold, d_gain, d_initial = ops.backward(
            grad_spikes,
            grad_membrane,
            grad_last,
            membrane,
            checkpoints,
            x,
            weight,
            decay,
            bias_ih,
            bias_hh,
            threshold,
            gain,
            initial,
            ctx.kernel_surrogate or (surrogate.disabled().kind, 0.0, 0.0),
            seed=seed,
            dropout=ctx.dropout,
            outputs=sum(
                1 << bit for bit, needed in enumerate([*needs[:3], needs[3] or needs[4], *needs[5:8]]) if needed
            ),
            request=ctx.request,
            checkpoint_interval=ctx.interval,
        )
        of_ih, of_hh = ctx.bias_dtypes
        return (
            d_x if needs[0] else None,
            d_weight if needs[1] else None,
            d_decay.to(decay.dtype) if needs[2] else None,
            d_bias.to(of_ih) if needs[3] else None,
            d_bias.to(of_hh) if needs[4] else None,
            d_threshold.to(threshold.dtype) if needs[5] else None,
            d_gain.to(gain.dtype) if needs[6] else None,
            d_initial.to(initial.dtype) if needs[7] else None,
        )


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
    spike_grad: surrogate.SpikeGrad | None = None,
    dropout: float = 0.0,
    return_membrane: bool = False,
    return_state: bool = False,
    recompute: bool = False,
    plan: launch_plan.Plan | launch_plan.Method | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""A layer of leaky integrate-and-fire neurons over a whole sequence, on the fused kernels.

    .. math::

        h_t = \mathrm{relu}(w h_{t-1} + W x_t + b_{ih} + b_{hh}), \qquad
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
        spike_grad: a surrogate of `leakypar.surrogate`, None for `atan()`, or any callable from membrane - threshold to
            spikes. SSO, custom surrogates and callables run in PyTorch, on the membrane that the kernels return.
        dropout: probability that a membrane value is zeroed before the threshold, in [0, 1]; survivors are scaled by
            1 / (1 - p). The recurrence does not see it. Each call draws one number from PyTorch's generator for the
            device of `x`, and the kernels derive from it, in both directions, what drops out: no mask is kept.
        return_membrane: also return the membrane of every step, before dropout.
        return_state: also return the membrane after the last step, to continue from.
        recompute: keep for the backward only what the membrane is rebuilt from, a checkpoint every
            `leakypar.launch_plan.checkpoint_interval` steps: a sixteenth of the membrane's memory at most, for one more
            product of input and weights. The spike must run in the kernels.
        plan: "sequential" or "look_back" to force the scans, "project_scan" to force that forward (see
            `leakypar.Plan`), a `leakypar.Plan` to force everything, None to let sizes decide.

    Returns:
        Spikes `[T, N, H]` (`[T, H]` without a batch) in the compute dtype; then, if asked for, the membrane in the same
        shape and dtype, and the final membrane `[N, H]` (`[H]`) in the state dtype, as a tuple.

    Raises:
        RuntimeError: the kernels were not built for the device of `x`; or a second derivative is asked for.
        TypeError: an argument is not of a type named above.
        ValueError: a shape, dtype, device or number does not fit; or `recompute` is asked for where the spike runs in
            PyTorch, which keeps the membrane.
    """
    validation.check_input(x, weight)
    H = weight.shape[0]
    validation.check_vector("decay", decay, H, x)
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            validation.check_vector(name, bias, H, x)
    validation.check_per_neuron("threshold", threshold, H, x)
    validation.check_per_neuron("gain", gain, H, x)
    if not ops.is_available(x.device.type):
        raise RuntimeError(ops.unavailable_reason(x.device.type))
    return run(
        x,
        weight,
        decay,
        bias_ih,
        bias_hh,
        threshold,
        gain,
        initial_membrane=initial_membrane,
        spike_grad=surrogate.resolve(spike_grad),
        dropout=validation.check_probability("dropout", dropout),
        return_membrane=return_membrane,
        return_state=return_state,
        recompute=validation.check_flag("recompute", recompute),
        request=launch_plan.request(plan, recompute=recompute),
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
    spike_grad: surrogate.SpikeGrad,
    dropout: float,
    return_membrane: bool,
    return_state: bool,
    recompute: bool,
    request: launch_plan.Request,
) -> Tensor | tuple[Tensor, ...]:
    """`leaky_parallel` where all but `initial_membrane` and the dtype of `x` is known to fit, as in the module."""
    dtype = validation.compute_dtype(x, weight)
    validation.check_initial_membrane(initial_membrane, x, weight.shape[0], dtype)
    validation.check_flag("return_membrane", return_membrane)
    validation.check_flag("return_state", return_state)
    if x.dtype != dtype or weight.dtype != dtype:  # under autocast
        x, weight = x.to(dtype), weight.to(dtype)
    threshold, gain = (_tensor(value, x) for value in (threshold, gain))
    batched = x.dim() == 3
    if not batched:
        x = x.unsqueeze(1)
        initial_membrane = None if initial_membrane is None else initial_membrane.unsqueeze(0)

    kernel_surrogate = None
    if isinstance(spike_grad, surrogate.SurrogateGradient) and spike_grad.kind is not None:
        kernel_surrogate = (spike_grad.kind, *spike_grad.parameters)
    in_kernel = kernel_surrogate is not None
    if recompute and not in_kernel:
        raise ValueError(
            "recompute must be False where the spike runs in PyTorch, which keeps the membrane: "
            f"got recompute=True with spike_grad={spike_grad!r}"
        )
    seed = torch.randint(2**63 - 1, (), device=x.device) if in_kernel and dropout > 0 else None
    spikes, membrane, last = _run(
        (x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane),
        seed,
        dropout,
        kernel_surrogate,
        return_membrane or not in_kernel,
        return_state,
        recompute,
        request,
    )
    if not in_kernel:
        seen = torch.nn.functional.dropout(membrane, dropout) if dropout > 0 else membrane
        v = seen - threshold.reshape(-1)  # a scalar tensor would be rounded to the membrane's dtype before it is taken
        spikes = (validation.check_spikes(spike_grad(v), v) * gain).to(dtype)
    results = [spikes] + [membrane] * return_membrane + [last] * return_state
    if not batched:
        # The batch dimension is 1 in spikes and membrane [T, 1, H], 0 in the final membrane [1, H].
        results = [result.squeeze(-2) for result in results]
    return results[0] if len(results) == 1 else tuple(results)


def _run(
    tensors: tuple[Any, ...],
    seed: Tensor | None,
    dropout: float,
    kernel_surrogate: tuple[int, float, float] | None,
    want_membrane: bool,
    want_final: bool,
    recompute: bool,
    request: launch_plan.Request,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operators, with the autograd graph where a gradient can be asked for. Unwanted outputs are void."""
    records = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    # The operators would drop a tangent of forward-mode differentiation without a word; the function refuses it.
    if records or forward_ad._current_level >= 0:
        spikes, membrane, last, _ = _LeakyParallel.apply(  # type: ignore[no-untyped-call]
            *tensors, seed, dropout, kernel_surrogate, want_membrane, want_final, recompute, request
        )
        return spikes, membrane, last
    spikes, membrane, _, last = ops.forward(
        *tensors,
        seed=seed,
        dropout=dropout,
        outputs=ops.SPIKES * (kernel_surrogate is not None)
        + ops.MEMBRANE * want_membrane
        + ops.FINAL_MEMBRANE * want_final,
        request=request,
    )
    return spikes, membrane, last


def _tensor(value: Tensor | float, like: Tensor) -> Tensor:
    """The value where the kernels can read it. A fill does not wait for the device, as a copy from the host would."""
    return value if isinstance(value, Tensor) else like.new_full((), value, dtype=validation.state_dtype(like.dtype))
