"""The two operators joined to one differentiable function: what a forward keeps, and what its backward asks for."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import layer_operator, ops, surrogate
from .batching import folded, mapped_inputs, one_by_one, size_of, unfolded
from .lengths import beyond
from .torch_state import is_exporting, is_tracing

_GRAD = {name: 1 << bit for bit, name in enumerate(ops.GRADIENTS)}
"""The bit that asks the backward operator for a gradient."""

_TENSORS = len(ops.Inputs._fields)


class _Scan(torch.autograd.Function):
    """The operators joined: all outputs of `ops.forward`, an empty tensor for each not computed.

    Its inputs are the tensors of `ops.Inputs`, one by one, the settings, and the bits of the outputs that the caller
    takes. What the backward reads is an output too, so that the transforms of torch.func see it. A gradient is None
    where no output that leads to it has one.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, settings, taken = arguments
        kept = ops.MEMBRANE if settings.checkpoint_interval is None else ops.CHECKPOINTS
        return ops.forward(ops.Inputs(*tensors), settings, taken | kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, settings, taken = inputs
        given = ops.Inputs(*tensors)
        recompute = settings.checkpoint_interval is not None
        spikes, membrane, checkpoints, final_membrane, *events = output
        packed = len(events) > 0 and events[0].dim() == 3  # then nothing keeps x alive
        of_x, of_weight, of_decay, of_bias_ih, of_bias_hh, of_threshold, of_gain, of_initial = ctx.needs_input_grad[:8]
        ctx.save_for_backward(  # what no gradient needs is not kept alive
            given.x if (of_weight or recompute) and not packed else None,
            given.weight if of_x or recompute else None,
            given.decay,
            given.bias_ih if recompute else None,
            given.bias_hh if recompute else None,
            given.threshold,
            given.gain,
            given.initial_membrane if of_decay or recompute else None,
            given.lengths,
            given.seed,
            None if recompute else membrane,
            checkpoints if recompute else None,
            *(events if packed else (None, None)),
        )
        ctx.settings = settings._replace(features=given.x.shape[-1]) if packed else settings
        ctx.taken = taken
        of_state = given.bias_ih, given.bias_hh, given.initial_membrane
        ctx.dtypes = tuple([None if each is None else each.dtype for each in of_state])
        ctx.set_materialize_grads(False)

        reaches_membrane = of_x or of_weight or of_decay or of_bias_ih or of_bias_hh or of_initial
        passes = _passes(settings)
        constant = [*events] if reaches_membrane else [membrane, checkpoints, final_membrane, *events]
        if not (of_gain or (passes and (reaches_membrane or of_threshold))):
            constant.append(spikes)
        ctx.mark_non_differentiable(*constant)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        settings, taken = ctx.settings, ctx.taken
        # torch.compile gives zeros for the gradient of an output that the caller never saw.
        seen = zip((ops.SPIKES, ops.MEMBRANE, ops.CHECKPOINTS, ops.FINAL_MEMBRANE), grad_outputs, strict=False)
        grad_spikes, grad_membrane, _, grad_final_membrane = (grad if taken & bit else None for bit, grad in seen)
        of_x, of_weight, of_decay, of_bias_ih, of_bias_hh, of_threshold, of_gain, of_initial = ctx.needs_input_grad[:8]
        through_spikes = grad_spikes is not None and _passes(settings)
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

        *tensors, membrane, checkpoints, event_bits, event_value = ctx.saved_tensors
        given = ops.Inputs(*tensors)
        kept = membrane, checkpoints, event_bits, event_value
        if given.lengths is not None and given.x is not None and wanted & _GRAD["weight"]:
            # No padding, NaN say, meets the zeros of d_u there.
            given = given._replace(x=given.x.masked_fill(beyond(given.lengths, given.x.shape[0]), 0))
        # Where nothing differentiates the gradients in turn, the operator alone says the same in less time.
        run = _Gradients.forward if is_plain() and not torch.is_grad_enabled() else _Gradients.apply
        d_x, d_weight, d_decay, d_bias, d_threshold, d_gain, d_initial = run(
            grad_spikes, grad_membrane, grad_final_membrane, *kept, *given, settings, wanted
        )
        bias_ih_dtype, bias_hh_dtype, initial_dtype = ctx.dtypes
        grads: dict[str, Tensor] = {}
        if wanted & _GRAD["x"]:
            grads["x"] = d_x
        if wanted & _GRAD["weight"]:
            grads["weight"] = d_weight
        if wanted & _GRAD["decay"]:
            grads["decay"] = d_decay.to(given.decay.dtype)
        if wanted & _GRAD["bias"] and of_bias_ih:
            grads["bias_ih"] = d_bias.to(bias_ih_dtype)
        if wanted & _GRAD["bias"] and of_bias_hh:
            grads["bias_hh"] = d_bias.to(bias_hh_dtype)
        if wanted & _GRAD["threshold"]:
            grads["threshold"] = d_threshold.to(given.threshold.dtype)
        if wanted & _GRAD["gain"]:
            grads["gain"] = d_gain.to(given.gain.dtype)
        if wanted & _GRAD["initial_membrane"]:
            grads["initial_membrane"] = d_initial.to(initial_dtype)
        return tuple([grads.get(name) for name in _SCAN_INPUTS])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        named = dict(zip(_SCAN_INPUTS, inputs, strict=True))
        mapped = mapped_inputs(_SCAN_INPUTS, in_dims, inputs)
        # The place of a checkpoint depends on the size of the batch, and what drops out on the place in it.
        recompute = named["settings"].checkpoint_interval is not None
        if named["seed"] is not None or recompute or mapped - {"x", "initial_membrane", "lengths"}:
            return one_by_one(_Scan, info, in_dims, inputs)
        dims = dict(zip(_SCAN_INPUTS, in_dims, strict=True))
        B, N = info.batch_size, size_of(named["x"], dims["x"], 1)
        named["x"] = folded(named["x"], dims["x"], 1, B)
        for name in ("initial_membrane", "lengths"):
            named[name] = folded(named[name], dims[name], 0, B)
        return unfolded(_Scan.apply(*named.values()), (1, 1, None, 0, None, None), B, N)  # type: ignore[no-untyped-call]


class _ScanOfACall(torch.autograd.Function):
    """`_Scan` outside transforms and torch.compile, in the older form, whose call costs torch a third of the time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
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
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, settings, outputs = arguments
        incoming, inputs = ops.Incoming(*tensors[:-_TENSORS]), ops.Inputs(*tensors[-_TENSORS:])
        return ops.backward(incoming, inputs, settings, outputs)

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
        mapped = mapped_inputs(_GRADIENTS_INPUTS, in_dims, inputs)
        of_a_batch = {"grad_spikes": 1, "grad_membrane": 1, "grad_final_membrane": 0, "membrane": 1, "x": 1}
        of_a_batch |= {"event_bits": 1, "initial_membrane": 0, "lengths": 0}
        sums = named["outputs"] & ~(_GRAD["x"] | _GRAD["initial_membrane"])  # over the batch
        if sums or named["seed"] is not None or named["checkpoints"] is not None or mapped - of_a_batch.keys():
            return one_by_one(_Gradients, info, in_dims, inputs)
        dims = dict(zip(_GRADIENTS_INPUTS, in_dims, strict=True))
        B, N = info.batch_size, size_of(named["membrane"], dims["membrane"], 1)
        for name, at in of_a_batch.items():
            named[name] = folded(named[name], dims[name], at, B)
        batch = tuple(
            at if named["outputs"] & grad else None
            for grad, at in ((_GRAD["x"], 1), *[(0, None)] * 5, (_GRAD["initial_membrane"], 0))
        )
        return unfolded(_Gradients.apply(*named.values()), batch, B, N)  # type: ignore[no-untyped-call]


if ops.is_available("cpu"):
    layer_operator.register_derivative(_Scan)

_SCAN_INPUTS = (*ops.Inputs._fields, "settings", "taken")
_GRADIENTS_INPUTS = (*ops.Incoming._fields, *ops.Inputs._fields, "settings", "outputs")


def scan(inputs: ops.Inputs, settings: ops.Settings, taken: int) -> tuple[Tensor, ...]:
    """The first four outputs of `ops.forward`, with the autograd graph where a gradient can be asked for.

    `taken` has the bits of those that the caller takes.
    """
    # The operators would drop a tangent of forward-mode differentiation without a word; the function refuses it. Inside
    # a transform of torch.func, a tensor that is mapped over says that it requires no gradient though it may.
    plain = is_plain()
    if (
        not plain
        or is_tracing()  # whose check of itself records no gradients
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs))
    ):
        if keeps_a_graph():
            if settings.checkpoint_interval is not None:
                warnings.warn(
                    "leakypar: an exported program keeps the membrane: recompute=True does not reach it", stacklevel=2
                )
            return layer_operator.layer(inputs, settings, taken)
        compiling = torch.compiler.is_compiling()
        function = _ScanOfACall if plain and not compiling else _Scan
        # Compiled, sharded or faked, a tensor has its shape before the kernels run: there bits are kept where they are
        # promised, since what a CPU finds may be none.
        finds = type(inputs.x) is Tensor and inputs.x.is_cpu and not compiling and settings.request.event_rate != 0
        if plain and (settings.binary_input or finds) and (inputs.weight.requires_grad or settings.checkpoint_interval):
            taken |= ops.EVENTS
        spikes, membrane, checkpoints, final_membrane, _, event_value = function.apply(  # type: ignore[no-untyped-call]
            *inputs, settings, taken
        )
        if taken & ops.EVENTS and settings.binary_input and inputs.x.is_cuda:
            torch._assert_async(
                (event_value == event_value).all(),
                "binary_input must be None or False for an x that has more values than zero and one other, got True",
            )
        return spikes, membrane, checkpoints, final_membrane
    return ops.forward(inputs, settings._replace(checkpoint_interval=None), taken)[:4]


def _passes(settings: ops.Settings) -> bool:
    """Whether a gradient passes through the spikes."""
    return settings.surrogate is not None and settings.surrogate[0] != surrogate.disabled.kind


def keeps_a_graph() -> bool:
    """Whether a program of operators is being made of this call, which keeps no autograd.Function."""
    return is_exporting() or is_tracing()


def is_plain() -> bool:
    """Whether no transform of torch.func is active."""
    return not torch._C._are_functorch_transforms_active()
