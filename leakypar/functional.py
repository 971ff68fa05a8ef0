"""`leaky_parallel`: the layer as a function, differentiable through the fused kernels."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import launch_plan, layer_operator, ops, surrogate, validation

_Kernel = tuple[int, float, float]
"""A surrogate as the kernels take it: its kind and two parameters."""

_GRAD = {name: 1 << bit for bit, name in enumerate(ops.GRADIENTS)}
"""The bit that asks the backward operator for a gradient."""

_NO_GRADIENT: _Kernel = (surrogate.disabled.kind, 0.0, 0.0)


class _Scan(torch.autograd.Function):
    """The operators joined: spikes, membrane, checkpoints and final membrane, an empty tensor for each not computed.

    `taken` has the bits of the outputs that the caller takes. What the backward reads is an output too, so that the
    transforms of torch.func see it. A gradient is None where no output that leads to it has one.
    """

    @staticmethod
    def forward(
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
        kernel: _Kernel | None,
        taken: int,
        interval: int | None,
        request: launch_plan.Request,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return ops.forward(
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
            outputs=taken | (ops.MEMBRANE if interval is None else ops.CHECKPOINTS),
            request=request,
            checkpoint_interval=interval,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane, seed, *settings = inputs
        dropout, kernel, taken, interval, request = settings
        recompute = interval is not None
        spikes, membrane, checkpoints, final_membrane = output
        of_x, of_weight, of_decay, of_bias_ih, of_bias_hh, of_threshold, of_gain, of_initial = ctx.needs_input_grad[:8]
        ctx.save_for_backward(  # what no gradient needs is not kept alive
            x if of_weight or recompute else None,
            weight if of_x or recompute else None,
            decay,
            bias_ih if recompute else None,
            bias_hh if recompute else None,
            threshold,
            gain,
            initial_membrane if of_decay or recompute else None,
            seed,
            None if recompute else membrane,
            checkpoints if recompute else None,
        )
        ctx.settings = dropout, kernel or _NO_GRADIENT, taken, interval, request
        ctx.dtypes = tuple(None if each is None else each.dtype for each in (bias_ih, bias_hh, initial_membrane))
        ctx.set_materialize_grads(False)

        reaches_membrane = of_x or of_weight or of_decay or of_bias_ih or of_bias_hh or of_initial
        passes = kernel is not None and kernel[0] != surrogate.disabled.kind
        constant = [] if reaches_membrane else [membrane, checkpoints, final_membrane]
        if not (of_gain or (passes and (reaches_membrane or of_threshold))):
            constant.append(spikes)
        ctx.mark_non_differentiable(*constant)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        dropout, kernel, taken, interval, request = ctx.settings
        # torch.compile gives zeros for the gradient of an output that the caller never saw.
        seen = zip((ops.SPIKES, ops.MEMBRANE, ops.CHECKPOINTS, ops.FINAL_MEMBRANE), grad_outputs, strict=True)
        grad_spikes, grad_membrane, _, grad_final_membrane = (grad if taken & bit else None for bit, grad in seen)
        of_x, of_weight, of_decay, of_bias_ih, of_bias_hh, of_threshold, of_gain, of_initial = ctx.needs_input_grad[:8]
        through_spikes = grad_spikes is not None and kernel[0] != surrogate.disabled.kind
        wanted = 0
        if through_spikes or grad_membrane is not None or grad_final_membrane is not None:
            wanted = (
                _GRAD["x"] * of_x
                | _GRAD["weight"] * of_weight
                | _GRAD["decay"] * of_decay
                | _GRAD["bias"] * (of_bias_ih or of_bias_hh)
                | _GRAD["initial_membrane"] * of_initial
            )
        if through_spikes and of_threshold:
            wanted |= _GRAD["threshold"]
        if grad_spikes is not None and of_gain:
            wanted |= _GRAD["gain"]
        if not wanted:
            return (None,) * len(_SCAN_INPUTS)

        x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane, seed, membrane, checkpoints = (
            ctx.saved_tensors
        )
        # Where nothing differentiates the gradients in turn, the operator alone says the same in less time.
        run = _Gradients.forward if _is_plain() and not torch.is_grad_enabled() else _Gradients.apply
        d_x, d_weight, d_decay, d_bias, d_threshold, d_gain, d_initial = run(
            grad_spikes,
            grad_membrane,
            grad_final_membrane,
            membrane,
            checkpoints,
            x,
            weight,
            decay,
            bias_ih,
            bias_hh,
            threshold,
            gain,
            initial_membrane,
            seed,
            dropout,
            kernel,
            wanted,
            interval,
            request,
        )
        bias_ih_dtype, bias_hh_dtype, initial_dtype = ctx.dtypes
        grads: dict[str, Tensor] = {}
        if wanted & _GRAD["x"]:
            grads["x"] = d_x
        if wanted & _GRAD["weight"]:
            grads["weight"] = d_weight
        if wanted & _GRAD["decay"]:
            grads["decay"] = d_decay.to(decay.dtype)
        if wanted & _GRAD["bias"] and of_bias_ih:
            grads["bias_ih"] = d_bias.to(bias_ih_dtype)
        if wanted & _GRAD["bias"] and of_bias_hh:
            grads["bias_hh"] = d_bias.to(bias_hh_dtype)
        if wanted & _GRAD["threshold"]:
            grads["threshold"] = d_threshold.to(threshold.dtype)
        if wanted & _GRAD["gain"]:
            grads["gain"] = d_gain.to(gain.dtype)
        if wanted & _GRAD["initial_membrane"]:
            grads["initial_membrane"] = d_initial.to(initial_dtype)
        return tuple([grads.get(name) for name in _SCAN_INPUTS])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        named = dict(zip(_SCAN_INPUTS, inputs, strict=True))
        mapped = _mapped(_SCAN_INPUTS, in_dims, inputs)
        # The place of a checkpoint depends on the size of the batch, and what drops out on the place in it.
        if named["seed"] is not None or named["interval"] is not None or mapped - {"x", "initial_membrane"}:
            return _one_by_one(_Scan, info, in_dims, inputs)
        dims = dict(zip(_SCAN_INPUTS, in_dims, strict=True))
        B, N = info.batch_size, _size_of(named["x"], dims["x"], 1)
        named["x"] = _folded(named["x"], dims["x"], 1, B)
        named["initial_membrane"] = _folded(named["initial_membrane"], dims["initial_membrane"], 0, B)
        return _unfolded(_Scan.apply(*named.values()), (1, 1, None, 0), B, N)


class _ScanOfACall(torch.autograd.Function):
    """`_Scan` outside transforms and torch.compile, in the older form, whose call costs torch a third of the time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output = _Scan.forward(*inputs)
        _Scan.setup_context(ctx, inputs, output)
        return output

    backward = _Scan.backward


class _Gradients(torch.autograd.Function):
    """The backward operator, as a function whose own derivative is an error.

    `once_differentiable` would let a gradient pass as a constant where the incoming one is: silently wrong. The
    membrane, or the checkpoints in its place, is an output of the call whose gradients these are, so every input of
    that call is reached through this error.
    """

    @staticmethod
    def forward(
        grad_spikes: Tensor | None,
        grad_membrane: Tensor | None,
        grad_final_membrane: Tensor | None,
        membrane: Tensor | None,
        checkpoints: Tensor | None,
        x: Tensor | None,
        weight: Tensor | None,
        decay: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        threshold: Tensor,
        gain: Tensor,
        initial_membrane: Tensor | None,
        seed: Tensor | None,
        dropout: float,
        kernel: _Kernel,
        outputs: int,
        interval: int | None,
        request: launch_plan.Request,
    ) -> tuple[Tensor, ...]:
        return ops.backward(
            grad_spikes,
            grad_membrane,
            grad_final_membrane,
            membrane,
            checkpoints,
            x,
            weight,
            decay,
            bias_ih,
            bias_hh,
            threshold,
            gain,
            initial_membrane,
            kernel,
            seed=seed,
            dropout=dropout,
            outputs=outputs,
            request=request,
            checkpoint_interval=interval,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "leakypar: the fused kernels have no second derivative; leakypar.reference.leaky_parallel has one, and so "
            'has a layer with backend="rnn"'
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        named = dict(zip(_GRADIENTS_INPUTS, inputs, strict=True))
        mapped = _mapped(_GRADIENTS_INPUTS, in_dims, inputs)
        of_a_batch = {"grad_spikes": 1, "grad_membrane": 1, "grad_final_membrane": 0, "membrane": 1, "x": 1}
        of_a_batch["initial_membrane"] = 0
        sums = named["outputs"] & ~(_GRAD["x"] | _GRAD["initial_membrane"])  # over the batch
        if sums or named["seed"] is not None or named["checkpoints"] is not None or mapped - of_a_batch.keys():
            return _one_by_one(_Gradients, info, in_dims, inputs)
        dims = dict(zip(_GRADIENTS_INPUTS, in_dims, strict=True))
        B, N = info.batch_size, _size_of(named["membrane"], dims["membrane"], 1)
        for name, at in of_a_batch.items():
            named[name] = _folded(named[name], dims[name], at, B)
        batch = tuple(
            at if named["outputs"] & grad else None
            for grad, at in ((_GRAD["x"], 1), *[(0, None)] * 5, (_GRAD["initial_membrane"], 0))
        )
        return _unfolded(_Gradients.apply(*named.values()), batch, B, N)


if ops.is_available("cpu"):
    layer_operator.register_derivative(_Scan)

_SCAN_INPUTS = tuple(inspect.signature(_Scan.forward).parameters)
_GRADIENTS_INPUTS = tuple(inspect.signature(_Gradients.forward).parameters)


def _mapped(names: Iterable[Any], in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> set[Any]:
    """Which inputs are mapped over. A tuple among them has a tuple for its dimensions."""
    by_name = zip(names, in_dims, inputs, strict=True)
    return {name for name, dim, value in by_name if isinstance(value, Tensor) and dim is not None}


def _one_by_one(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """The rule of `vmap` that holds whatever is mapped over: a call for each element, and the results stacked."""
    mapped = _mapped(range(len(inputs)), in_dims, inputs)
    parts = [value.unbind(in_dims[i]) if i in mapped else [value] * info.batch_size for i, value in enumerate(inputs)]
    results = [function.apply(*part) for part in zip(*parts, strict=True)]
    stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _size_of(value: Tensor, mapped: int | None, at: int) -> int:
    """Size of dimension `at` of a tensor as the mapped function sees it: without its dimension `mapped`."""
    return value.shape[at + (mapped is not None and mapped % value.dim() <= at)]


def _folded(value: Tensor | None, mapped: int | None, at: int, B: int) -> Tensor | None:
    """The dimension that is mapped over, of size `B`, folded into the batch at `at`."""
    if value is None:
        return None
    if mapped is not None:
        return value.movedim(mapped, at).flatten(at, at + 1)
    return value.unsqueeze(at).expand(*value.shape[:at], B, *value.shape[at:]).flatten(at, at + 1)


def _unfolded(
    results: tuple[Tensor, ...], batch: tuple[int | None, ...], B: int, N: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The dimension that is mapped over, out of the batch again; `batch` says where each result has it, or None."""
    batch = tuple(None if result.dim() == 1 else at for result, at in zip(results, batch, strict=True))
    unfolded = (
        result if at is None else result.reshape(*result.shape[:at], B, N, *result.shape[at + 1 :])
        for result, at in zip(results, batch, strict=True)
    )
    return tuple(unfolded), batch


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
        state = validation.state_dtype(membrane.dtype)
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
    state = validation.state_dtype(membrane.dtype)
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
    state = validation.state_dtype(like.dtype)
    if dropout == 1:
        return like.new_zeros((T, N, H), dtype=state)
    zero = like.new_zeros((), dtype=state)
    factors, *_ = _run(
        like.new_empty((T, N, 0), dtype=state),
        like.new_empty((H, 0), dtype=state),
        like.new_zeros(H, dtype=state),
        like.new_ones(H, dtype=state),
        None,
        zero,
        zero + 1 / (1 - dropout),
        None,
        seed,
        dropout,
        _NO_GRADIENT,
        ops.SPIKES,
        None,
        launch_plan.AUTOMATIC,
    )
    return factors


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
        return_membrane: also return the membrane of every step, before dropout. The spikes' gradient then flows through
            it, so that hooks and `retain_grad` see it; that costs the backward one more pass, in PyTorch.
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
    """`leaky_parallel` with its settings resolved, as the module keeps them."""
    dtype = validation.check_call(x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane)
    return_membrane = validation.check_flag("return_membrane", return_membrane)
    return_state = validation.check_flag("return_state", return_state)
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

    kernel: _Kernel | None = None
    if isinstance(spike_grad, surrogate.SurrogateGradient) and spike_grad.kind is not None:
        kernel = (spike_grad.kind, *spike_grad.parameters)
    in_kernel = kernel is not None
    if recompute and not in_kernel:
        raise ValueError(
            "recompute must be False where the spike runs in PyTorch, which keeps the membrane: "
            f"got recompute=True with spike_grad={spike_grad!r}"
        )
    taken = ops.SPIKES if in_kernel else ops.MEMBRANE
    if return_membrane:
        taken |= ops.MEMBRANE
    if return_state:
        taken |= ops.FINAL_MEMBRANE
    seed = torch.randint(2**63 - 1, (), device=x.device) if in_kernel and dropout > 0 else None
    spikes, membrane, _, final_membrane = _run(
        x,
        weight,
        decay,
        bias_ih,
        bias_hh,
        threshold,
        gain,
        initial_membrane,
        seed,
        dropout,
        kernel,
        taken,
        launch_plan.checkpoint_interval(x.shape[0], x.shape[1], dtype) if recompute else None,
        request,
    )
    if kernel is None:
        seen = torch.nn.functional.dropout(membrane, dropout) if dropout > 0 else membrane
        v = seen - threshold.reshape(-1)  # a scalar tensor would be rounded to the membrane's dtype before it is taken
        spikes = (validation.check_spikes(spike_grad(v), v) * gain).to(dtype)
    elif return_membrane and kernel[0] != surrogate.disabled.kind and (membrane.requires_grad or not _is_plain()):
        of_membrane = _recorded_spikes if torch.compiler.is_exporting() else _SpikesOfMembrane.apply
        spikes = of_membrane(spikes, membrane, threshold, gain, seed, dropout, spike_grad)
    results = [spikes]
    if return_membrane:
        results.append(membrane)
    if return_state:
        results.append(final_membrane)
    if not batched:
        # The batch dimension is 1 in spikes and membrane [T, 1, H], 0 in the final membrane [1, H].
        results = [result.squeeze(-2) for result in results]
    return results[0] if len(results) == 1 else tuple(results)


def _run(
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
    kernel: _Kernel | None,
    taken: int,
    interval: int | None,
    request: launch_plan.Request,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operators, with the autograd graph where a gradient can be asked for."""
    tensors = x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane
    # The operators would drop a tangent of forward-mode differentiation without a word; the function refuses it. Inside
    # a transform of torch.func, a tensor that is mapped over says that it requires no gradient though it may.
    plain = _is_plain()
    if (
        not plain
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors))
    ):
        if torch.compiler.is_exporting():
            if interval is not None:
                warnings.warn(
                    "leakypar: an exported program keeps the membrane: recompute=True does not reach it", stacklevel=2
                )
            return layer_operator.layer(*tensors, seed, dropout, kernel or _NO_GRADIENT, taken, request)
        function = _ScanOfACall if plain and not torch.compiler.is_compiling() else _Scan
        results: tuple[Tensor, Tensor, Tensor, Tensor] = function.apply(  # type: ignore[no-untyped-call]
            *tensors, seed, dropout, kernel, taken, interval, request
        )
        return results
    return ops.forward(*tensors, seed=seed, dropout=dropout, outputs=taken, request=request)


def _is_plain() -> bool:
    """Whether no transform of torch.func is active."""
    return not torch._C._are_functorch_transforms_active()


def _filled(value: float, like: Tensor) -> Tensor:
    """A number where the kernels can read it. A fill does not wait for the device, as a copy from the host would."""
    return like.new_full((), float(value), dtype=validation.state_dtype(like.dtype))
