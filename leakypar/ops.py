"""The registered operators, typed: availability, and the two calls with their shape-only versions.

`torch.ops.leakypar.forward` and `torch.ops.leakypar.backward` are implemented in `csrc/torch`, for the CPU and
for CUDA. They are not differentiable by themselves: `leakypar.leaky_parallel` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .build_info import build_info
from .launch_plan import AUTOMATIC, Launch, fusible, recompute_steps, rnn_tf32
from .validation import state_dtype

# Found out once, at import: torch.compile can trace a look at a tuple, not a look at the file system.
_BUILT_FOR: tuple[str, ...] = {"cuda": ("cpu", "cuda"), "cpu": ("cpu",), "python": ()}[build_info().variant]
_library = torch.ops.leakypar


def is_available(device_type: str) -> bool:
    """Whether the fused kernels were built for a device type.

    Args:
        device_type: `torch.device.type`, such as "cpu" or "cuda".
    """
    return device_type in _BUILT_FOR


def _fuses_on(device_type: str) -> bool:
    return device_type == "cuda"


def unavailable_reason(device_type: str) -> str:
    """Why the fused kernels cannot run on a device type, and what would change that."""
    info = build_info()
    if device_type not in ("cpu", "cuda"):
        return f"leakypar has kernels for 'cpu' and 'cuda' devices, not for {device_type!r}"
    return (
        f"leakypar was built without {device_type} kernels ({info.reason}); "
        "reinstall it beside a compiler and the torch you use: pip install --no-build-isolation ."
    )


def _allow_tf32(tensor: Tensor) -> bool:
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


def forward(
    x: Tensor,
    weight: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
    gain: Tensor,
    initial: Tensor | None,
    *,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    want_spikes: bool,
    want_membrane: bool,
    want_carries: bool,
    want_last: bool,
    launch: Launch = AUTOMATIC,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projection, scan and spike.

    Args:
        x: `[T, N, C]`, any strides.
        weight: `[H, C]`, dtype of `x`.
        bias_ih: `[H]` or None.
        bias_hh: `[H]` or None.
        decay: `[H]`, any stride: the diagonal of the recurrent weight.
        threshold: `[H]`, or one value.
        gain: `[H]`, or one value: the height of a spike.
        initial: `[N, H]`, the membrane before the first step, or None for zeros.
        seed: one int64 on the device of `x`, which with its place decides whether an element drops out (Philox, see
            `csrc/math/dropout.h`); None for no dropout.
        dropout: probability of that, exact to 2^-25, for the membrane as the threshold sees it.
        want_spikes: return the spikes.
        want_membrane: return the membrane of every step.
        want_carries: return the membrane after every `recompute_steps` steps, the end excepted.
        want_last: return the membrane of the last step.
        launch: the plan to force.

    Raises:
        ValueError: the fused kernel is forced where there is none: on the CPU, in float64, in float32 without TF32; or
            with carries for a backward that recomputes the membrane, since that projects by the vendor's product.

    Returns:
        Spikes `[T, N, H]` and membrane `[T, N, H]` in the dtype of `x`, carries `[chunks - 1, N, H]` and last membrane
        `[N, H]` in the state dtype; an empty tensor for each that is not wanted.
    """
    allow_tf32 = _allow_tf32(x)
    if launch.scan_forward == "fused" and not (_fuses_on(x.device.type) and fusible(x.dtype, allow_tf32)):
        raise ValueError(
            "plan: 'fused' is for float16, bfloat16 and, where TF32 is allowed, float32 on a CUDA device; "
            f"x is {x.dtype} on {x.device}, TF32 {'allowed' if allow_tf32 else 'not allowed'}"
        )
    if launch.scan_forward == "fused" and want_carries:
        raise ValueError("plan: 'fused' does not go with recompute=True, whose backward projects in chunks")
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _call(
        _library.forward.default,
        x,
        weight,
        bias_ih,
        bias_hh,
        decay,
        threshold,
        gain,
        initial,
        seed,
        dropout,
        want_spikes,
        want_membrane,
        want_carries,
        want_last,
        allow_tf32,
        launch.scan_forward,
        launch.chunk_steps,
        launch.tiles,
    )
    return outputs


def backward(
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_last: Tensor | None,
    membrane: Tensor | None,
    carries: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
    gain: Tensor,
    initial: Tensor | None,
    surrogate: tuple[int, float, float],
    *,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
    want_decay: bool,
    want_threshold: bool,
    want_gain: bool,
    want_initial: bool,
    launch: Launch = AUTOMATIC,
) -> tuple[Tensor, ...]:
    """The gradients of x, weight, either bias, decay, threshold, gain and initial; an empty tensor where not wanted.

    Args:
        grad_spikes: `[T, N, H]`, the gradient of the spikes, or None for zeros.
        grad_membrane: `[T, N, H]`, the gradient of the membrane of every step, or None for zeros.
        grad_last: `[N, H]`, the gradient of the last membrane, or None for zeros.
        membrane: `[T, N, H]` from `forward`, or None where it is recomputed from the carries.
        carries: `[chunks - 1, N, H]` from `forward`, or None where the membrane is given.
        x: `[T, N, C]`; None where neither the weight's gradient nor a recomputed membrane needs it.
        weight: `[H, C]`; None where neither the input's gradient nor a recomputed membrane needs it.
        bias_ih: as in `forward`, read where the membrane is recomputed.
        bias_hh: as in `forward`, read where the membrane is recomputed.
        decay: as in `forward`.
        threshold: as in `forward`.
        gain: as in `forward`.
        initial: as in `forward`.
        surrogate: kind and two parameters, numbered as in `csrc/math/surrogate.h`.
        seed: as in `forward`, and the same one.
        dropout: as in `forward`.
        want_x: return the input's gradient.
        want_weight: return the weight's.
        want_bias: return the gradient that both biases share.
        want_decay: return the decay's.
        want_threshold: return the threshold's.
        want_gain: return the gain's.
        want_initial: return the initial membrane's.
        launch: the plan to force.

    Returns:
        Seven tensors. Those of x and weight have their dtype, the rest the state dtype.
    """
    like = x if membrane is None else membrane
    assert like is not None  # one of the two is always given
    grads: tuple[Tensor, ...] = _call(
        _library.backward.default,
        grad_spikes,
        grad_membrane,
        grad_last,
        membrane,
        carries,
        x,
        weight,
        bias_ih,
        bias_hh,
        decay,
        threshold,
        gain,
        initial,
        seed,
        dropout,
        *surrogate,
        want_x,
        want_weight,
        want_bias,
        want_decay,
        want_threshold,
        want_gain,
        want_initial,
        _allow_tf32(like),
        launch.scan_backward,
        launch.backward_chunk_steps,
    )
    return grads


def register_shapes(namespace: str) -> None:
    """Registers the shape-only versions, by which torch.compile and meta tensors see the operators of a namespace."""

    def forward_shapes(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        want_spikes, want_membrane, want_carries, want_last = arguments[8:12]
        T, N = x.shape[:2]
        H = weight.shape[0]
        state = state_dtype(x.dtype)
        carries = max(-(-T // recompute_steps(T, N, x.dtype)) - 1, 0) if want_carries else 0
        return (
            x.new_empty((T, N, H) if want_spikes else 0),
            x.new_empty((T, N, H) if want_membrane else 0),
            x.new_empty((carries, N, H), dtype=state) if want_carries else x.new_empty(0),
            x.new_empty((N, H), dtype=state) if want_last else x.new_empty(0),
        )

    def backward_shapes(
        grad_spikes: Tensor | None,
        grad_membrane: Tensor | None,
        grad_last: Tensor | None,
        membrane: Tensor | None,
        carries: Tensor | None,
        x: Tensor | None,
        weight: Tensor | None,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        decay: Tensor,
        threshold: Tensor,
        gain: Tensor,
        *arguments: Any,
    ) -> tuple[Tensor, ...]:
        want_x, want_weight, want_bias, want_decay, want_threshold, want_gain, want_initial = arguments[6:13]
        like = x if membrane is None else membrane
        assert like is not None  # one of the two is always given
        T, N = like.shape[:2]
        H = weight.shape[0] if membrane is None and weight is not None else like.shape[2]
        state = state_dtype(like.dtype)

        def shaped(wanted: bool, *shape: Any) -> Tensor:
            return like.new_empty(shape, dtype=state) if wanted else like.new_empty(0)

        return (
            like.new_empty(T, N, weight.shape[1]) if want_x and weight is not None else like.new_empty(0),
            like.new_empty(H, x.shape[2]) if want_weight and x is not None else like.new_empty(0),
            shaped(want_bias, H),
            shaped(want_decay, *decay.shape),
            shaped(want_threshold, *threshold.shape),
            shaped(want_gain, *gain.shape),
            shaped(want_initial, N, H),
        )

    torch.library.register_fake(f"{namespace}::forward", forward_shapes)
    torch.library.register_fake(f"{namespace}::backward", backward_shapes)


if _BUILT_FOR:
    register_shapes("leakypar")
