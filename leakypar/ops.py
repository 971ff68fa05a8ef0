"""The registered operators, typed: availability, and the two calls with their shape-only versions.

`torch.ops.leakypar.forward` and `torch.ops.leakypar.backward` are implemented in `csrc/torch`, for the CPU and
for CUDA. They are not differentiable by themselves: `leakypar.leaky_parallel` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .build_info import build_info
from .dtypes import state_dtype
from .launch_plan import AUTOMATIC, Request, rnn_tf32

# Bits of `outputs`, in the order of the results.
SPIKES, MEMBRANE, CHECKPOINTS, FINAL_MEMBRANE, EVENTS = (1 << bit for bit in range(5))
Bounds = tuple[float | None, float | None]
GRADIENTS = ("x", "weight", "decay", "bias", "threshold", "gain", "initial_membrane")

# Found out once, at import: torch.compile can trace a look at a tuple, not a look at the file system.
_BUILT_FOR: tuple[str, ...] = {
    "cuda": ("cpu", "cuda", "meta"),
    "cpu": ("cpu", "meta"),
    "python": (),
}[build_info().variant]
_library = torch.ops.leakypar


def is_available(device_type: str) -> bool:
    """Whether the fused kernels were built for a device type.

    Args:
        device_type: `torch.device.type`, such as "cpu" or "cuda"; "meta" has the shapes alone.
    """
    return device_type in _BUILT_FOR


def unavailable_reason(device_type: str) -> str:
    """Why the fused kernels cannot run on a device type, and what would change that."""
    info = build_info()
    if device_type not in ("cpu", "cuda"):
        return f"leakypar has kernels for 'cpu' and 'cuda' devices, not for {device_type!r}"
    return (
        f"leakypar was built without {device_type} kernels ({info.reason}); "
        "reinstall it beside a compiler and the torch you use: pip install --no-build-isolation ."
    )


def allow_tf32(tensor: Tensor) -> bool:
    """Whether a product of this tensor may round its operands to TF32."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and rnn_tf32()


def _call(operator: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        if "CUDA out of memory" in str(error):
            torch.cuda.mem_get_info()  # raises what really happened where an earlier error has lost the device
        raise torch.OutOfMemoryError(str(error)) from None


class Inputs(NamedTuple):
    """The tensors that a call is about, in the order of the operators' schemas and of C++.

    Attributes:
        x: `[T, N, C]`, any strides.
        weight: `[H, C]`, dtype of `x`.
        decay: `[H]`, any stride: the diagonal of the recurrent weight.
        bias_ih: `[H]` or None.
        bias_hh: `[H]` or None.
        threshold: `[H]`, or one value.
        gain: `[H]`, or one value: the height of a spike.
        initial_membrane: `[N, H]`, the membrane before the first step, or None for zeros.
        lengths: int64 `[N]`, contiguous: the steps that each sequence has; None where all have `T`.
        seed: one int64 on the device of `x`, which with its place decides whether an element drops out (Philox, see
            `csrc/math/dropout.h`); None for no dropout.
    """

    x: Tensor
    weight: Tensor
    decay: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    threshold: Tensor
    gain: Tensor
    initial_membrane: Tensor | None
    lengths: Tensor | None = None
    seed: Tensor | None = None


class Settings(NamedTuple):
    """The numbers that a call is about.

    Attributes:
        bounds: what a membrane is clamped to after each step, lower < upper; None for no bound. One that equals either,
            both rounded to its dtype, passes no gradient.
        dropout: probability that an element drops out, exact to 2^-25, for the membrane as the threshold sees it.
        surrogate: its kind and two parameters, numbered as in `csrc/math/surrogate.h`; None where the spike is not the
            kernels'.
        checkpoint_interval: time steps between checkpoints; None where the membrane is kept.
        request: what is forced of the plan.
        binary_input: whether `x` is promised to be zeros and one other value.
        features: C, in a backward that has events in place of `x`.
    """

    bounds: Bounds = (0.0, None)
    dropout: float = 0.0
    surrogate: tuple[int, float, float] | None = None
    checkpoint_interval: int | None = None
    request: Request = AUTOMATIC
    binary_input: bool = False
    features: int | None = None


class Incoming(NamedTuple):
    """What a backward begins with.

    Attributes:
        grad_spikes: `[T, N, H]`, the gradient of the spikes, or None for zeros.
        grad_membrane: `[T, N, H]`, the gradient of the membrane of every step, or None for zeros.
        grad_final_membrane: `[N, H]`, the gradient of the final membrane, or None for zeros.
        membrane: `[T, N, H]` of the forward, or None where it is recomputed from the checkpoints.
        checkpoints: `[chunks - 1, N, H]` of the forward, or None where the membrane is given.
        event_bits: int64 `[T, N, ceil(C / 64)]` of the forward, or None where `x` is given.
        event_value: `[1]`, with them.
    """

    grad_spikes: Tensor | None
    grad_membrane: Tensor | None
    grad_final_membrane: Tensor | None
    membrane: Tensor | None
    checkpoints: Tensor | None
    event_bits: Tensor | None = None
    event_value: Tensor | None = None


NO_GRADIENT = (0, 0.0, 0.0)
"""The surrogate through which nothing passes."""


def forward(inputs: Inputs, settings: Settings, outputs: int) -> tuple[Tensor, ...]:
    """Projection, scan and spike.

    Args:
        inputs: the tensors.
        settings: the numbers; the surrogate is not read.
        outputs: what to return, a sum of `SPIKES`, `MEMBRANE`, `CHECKPOINTS`, `FINAL_MEMBRANE` and `EVENTS`.

    Raises:
        ValueError: what is forced of the plan does not fit the work or the device; or, on a CPU, `x` is not what it is
            promised to be.

    Returns:
        Spikes `[T, N, H]` and membrane `[T, N, H]` in the dtype of `x`, checkpoints `[chunks - 1, N, H]` and final
        membrane `[N, H]` in the state dtype; then `x` as bits, int64 `[T, N, ceil(C / 64)]`, and the value `[1]` that
        they stand for, in its dtype (`csrc/math/event_bits.h`). An empty tensor for each that is not asked for, and for
        the last two also where `x` is not made of events or, without checkpoints, has too many ones for them to pay. On
        a GPU the value is NaN where `x` breaks its promise.
    """
    request = settings.request
    results: tuple[Tensor, ...] = _call(
        _library.forward.default,
        *inputs,
        *settings.bounds,
        settings.dropout,
        outputs,
        allow_tf32(inputs.x),
        request.forward,
        settings.checkpoint_interval or request.gemm_chunk,
        request.tiles,
        request.event_rate,
        settings.binary_input,
    )
    return results


def backward(incoming: Incoming, inputs: Inputs, settings: Settings, outputs: int) -> tuple[Tensor, ...]:
    """The gradients of x, weight, decay, either bias, threshold, gain and the initial membrane, in this order.

    Args:
        incoming: the gradients of what the forward gave, and what it kept.
        inputs: as in `forward`. `x` may be None where there are events, or neither the weight's gradient nor a
            recomputed membrane needs it, `weight` where neither the input's gradient nor one does; the biases are read
            for one alone. The weight's gradient is a product with all of `x`, which must be finite beyond the lengths.
        settings: as in `forward`, and the same ones.
        outputs: bit i asks for the i-th gradient, named in `GRADIENTS`.

    Returns:
        Seven tensors, one without elements for each that is not asked for. Those of x and weight have their dtype, the
        rest the state dtype.
    """
    like = next(each for each in (incoming.membrane, inputs.x, incoming.event_value) if each is not None)
    request = settings.request
    grads: tuple[Tensor, ...] = _call(
        _library.backward.default,
        *incoming,
        *inputs,
        *settings.bounds,
        settings.dropout,
        *(settings.surrogate or NO_GRADIENT),
        outputs,
        allow_tf32(like),
        request.backward,
        settings.checkpoint_interval or request.backward_gemm_chunk,
        request.event_rate,
        request.backward_event_rate,
        settings.features,
    )
    return grads


def register_shapes(namespace: str) -> None:
    """Registers the shape-only versions, by which torch.compile and meta tensors see the operators of a namespace."""

    def forward_shapes(
        x: Tensor,
        weight: Tensor,
        decay: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        threshold: Tensor,
        gain: Tensor,
        initial_membrane: Tensor | None,
        lengths: Tensor | None,
        seed: Tensor | None,
        lower: float | None,
        upper: float | None,
        dropout: float,
        outputs: int,
        allow_tf32: bool,
        method: str | None,
        gemm_chunk: int | None,
        tiles: list[int] | None,
        event_rate: float | None,
        binary_input: bool = False,
    ) -> tuple[Tensor, ...]:
        T, N, C = x.shape
        H = weight.shape[0]
        state = state_dtype(x.dtype)

        def shaped(output: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return x.new_empty(shape, dtype=dtype) if outputs & output else x.new_empty(0)

        largest: Any = torch.sym_max  # which leaves open what a graph leaves open
        checkpoints = largest(-(-T // gemm_chunk) - 1, 0) if gemm_chunk else 0
        return (
            shaped(SPIKES, (T, N, H), x.dtype),
            shaped(MEMBRANE, (T, N, H), x.dtype),
            shaped(CHECKPOINTS, (checkpoints, N, H), state),
            shaped(FINAL_MEMBRANE, (N, H), state),
            shaped(EVENTS, (T, N, -(-C // 64)), torch.int64),
            shaped(EVENTS, (1,), x.dtype),
        )

    def layer_shapes(*arguments: Any) -> tuple[Tensor, ...]:
        # All but what only the backward needs: the surrogate, and the last three.
        return forward_shapes(*arguments[:13], *arguments[16:22])[:4]

    def backward_shapes(
        grad_spikes: Tensor | None,
        grad_membrane: Tensor | None,
        grad_final_membrane: Tensor | None,
        membrane: Tensor | None,
        checkpoints: Tensor | None,
        event_bits: Tensor | None,
        event_value: Tensor | None,
        x: Tensor | None,
        weight: Tensor | None,
        decay: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        threshold: Tensor,
        gain: Tensor,
        initial_membrane: Tensor | None,
        lengths: Tensor | None,
        seed: Tensor | None,
        lower: float | None,
        upper: float | None,
        dropout: float,
        surrogate: int,
        p0: float,
        p1: float,
        outputs: int,
        allow_tf32: bool,
        method: str | None,
        gemm_chunk: int | None,
        event_rate: float | None,
        backward_event_rate: float | None,
        features: int | None,
    ) -> tuple[Tensor, ...]:
        sized = next((each for each in (membrane, x, event_bits) if each is not None), None)
        like = event_value if sized is event_bits else sized
        if sized is None or like is None:
            raise RuntimeError("leakypar: expected either the membrane or the checkpoints, and x or events with these")
        T, N = sized.shape[:2]
        H = weight.shape[0] if membrane is None and weight is not None else sized.shape[2]
        C = x.shape[2] if x is not None else weight.shape[1] if weight is not None else features or 0
        state = state_dtype(like.dtype)
        shapes: tuple[tuple[Any, torch.dtype], ...] = (
            ((T, N, C), like.dtype),
            ((H, C), like.dtype),
            (decay.shape, state),
            ((H,), state),
            (threshold.shape, state),
            (gain.shape, state),
            ((N, H), state),
        )
        return tuple(
            like.new_empty(shape, dtype=dtype) if outputs >> bit & 1 else like.new_empty(0)
            for bit, (shape, dtype) in enumerate(shapes)
        )

    torch.library.register_fake(f"{namespace}::forward", forward_shapes)
    torch.library.register_fake(f"{namespace}::layer", layer_shapes)
    torch.library.register_fake(f"{namespace}::backward", backward_shapes)
    fragment = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("forward", "backward"):
        # The dispatcher asks this key only where a transform is active: other calls pay nothing for it.
        fragment.impl(  # type: ignore[no-untyped-call]
            name, _refuse_transform, "FuncTorchDynamicLayerFrontMode"
        )
    _fragments.append(fragment)


_fragments: list[torch.library.Library] = []


def _refuse_transform(*arguments: Any) -> Any:
    raise RuntimeError(
        "leakypar: an operator by itself has no rule for a transform of torch.func (grad, vmap, jvp, ...), which would "
        "lose gradients without a word; call leakypar.leaky_parallel"
    )


if _BUILT_FOR:
    register_shapes("leakypar")
