"""The check of a call, which every form of the layer shares, and of the tensors that come with one.

Each check raises a TypeError or ValueError that names the argument, what came and what was expected. None reads the
elements of a tensor, so none waits for a device. Sizes are `T` time steps, `N` batch, `C` input features and `H`
neurons.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .dtypes import COMPUTE_DTYPES, DTYPE_NAMES, state_dtype
from .setting_checks import is_real
from .torch_state import autocast_enabled


def check_call(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    threshold: Tensor | float,
    gain: Tensor | float,
    initial_membrane: Tensor | None,
    *,
    dense: bool = False,
) -> torch.dtype:
    """Every tensor of a call: what it is, its shape, its dtype and its device.

    Args:
        x: `[T, N, C]`, or `[T, C]` for one sequence.
        weight: `[H, C]`.
        decay: `[H]`; where `dense` is True, also `[H, H]`.
        bias_ih: `[H]`, or None.
        bias_hh: `[H]`, or None.
        threshold: a number, or `[]`, `[1]` or `[H]`.
        gain: a number, or `[]`, `[1]` or `[H]`.
        initial_membrane: `[N, H]` (`[H]` for one sequence) in the compute dtype or the state dtype, or None.
        dense: whether a whole recurrent matrix can be run.

    Returns:
        The compute dtype, that of the products, the membrane trace and the spikes: that of `x` and `weight`, or
        autocast's where autocast is on for their device. As everywhere under autocast, float64 is left alone.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, nor what else is named above.
        ValueError: a shape, dtype or device does not fit, or a number is NaN.
    """
    # torch.compile traces the checks below once; at a call, they would take longer than a small layer.
    if not torch.compiler.is_compiling() and _fits(
        x, weight, decay, bias_ih, bias_hh, threshold, gain, initial_membrane
    ):
        return weight.dtype
    x = _tensor("x", x, "[T, N, C] or [T, C]")
    weight = _tensor("weight", weight, "[H, C]")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape [H, C], got {list(weight.shape)}")
    if x.dim() not in (2, 3):
        raise ValueError(f"x must have shape [T, N, C], or [T, C] without a batch, got {list(x.shape)}")
    H, C = weight.shape
    if x.shape[-1] != C:
        raise ValueError(
            f"x must have {C} input features in its last dimension, got {x.shape[-1]} in shape {list(x.shape)}"
        )
    _same_device("weight", weight, x)
    dtype = _compute_dtype(x, weight)
    _check_decay(decay, H, x, dense)
    for name, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        if bias is not None:
            _check_vector(name, bias, H, x)
    _check_per_neuron("threshold", threshold, H, x)
    _check_per_neuron("gain", gain, H, x)
    if initial_membrane is not None:
        _check_initial_membrane(initial_membrane, x, H, dtype)
    return dtype


def _fits(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    threshold: Tensor | float,
    gain: Tensor | float,
    initial_membrane: Tensor | None,
) -> bool:
    """Whether a call is sure to be right: one compute dtype, a decay per neuron, no autocast and no initial membrane.

    False says nothing: the checks by name decide. This looks at each tensor once, because it runs at every call.
    """
    if initial_membrane is not None or not all(isinstance(each, Tensor) for each in (x, weight, decay)):
        return False
    dtype, device = weight.dtype, weight.device
    if dtype not in COMPUTE_DTYPES or x.dtype != dtype or x.device != device or autocast_enabled(device.type):
        return False
    strided = torch.strided
    if x.layout != strided or weight.layout != strided or x.is_nested or weight.dim() != 2:
        return False
    H, C = weight.shape
    if x.dim() not in (2, 3) or x.shape[-1] != C:
        return False
    per_neuron = (H,)
    for vector in (decay, bias_ih, bias_hh):
        if vector is not None and not (
            isinstance(vector, Tensor)
            and vector.shape == per_neuron
            and vector.dtype in COMPUTE_DTYPES
            and vector.device == device
            and vector.layout == strided
        ):
            return False
    for value in (threshold, gain):
        if isinstance(value, Tensor):
            if (
                value.dim() > 1
                or value.numel() not in (1, H)
                or value.dtype not in COMPUTE_DTYPES
                or value.device != device
                or value.layout != strided
            ):
                return False
        elif type(value) is not float or value != value:
            return False
    return True


def _tensor(name: str, value: object, expected: str) -> Tensor:
    """`value` as a dense tensor of float16, bfloat16, float32 or float64; `expected` is its shape in words."""
    if not isinstance(value, Tensor):
        if isinstance(value, PackedSequence):
            raise TypeError(
                f"{name} must be a tensor {expected}, got a PackedSequence: a layer takes one, and this what "
                "torch.nn.utils.rnn.pad_packed_sequence gives, with its lengths"
            )
        raise TypeError(f"{name} must be a tensor {expected}, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor {expected}, got a nested tensor of layout {value.layout}: pad it with "
            "torch.nested.to_padded_tensor and pass the lengths"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor {expected}, got layout {value.layout}")
    if value.dtype not in COMPUTE_DTYPES:
        raise TypeError(f"{name} must be a tensor of {DTYPE_NAMES}, got {value.dtype}")
    return value


def _same_device(name: str, value: Tensor, x: Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    if autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype(x.device.type)
    if x.dtype != weight.dtype:
        raise ValueError(
            f"x must have the dtype of the weights, {weight.dtype}, got {x.dtype}: "
            f"convert the input with x.to({weight.dtype}) or the layer with layer.to({x.dtype})"
        )
    return x.dtype


def _check_decay(decay: object, hidden_size: int, x: Tensor, dense: bool) -> None:
    if not dense:
        _check_vector("decay", decay, hidden_size, x)
        return
    decay = _tensor("decay", decay, "[H] or [H, H]")
    if list(decay.shape) not in ([hidden_size], [hidden_size] * 2):
        raise ValueError(f"decay must have shape [H] or [H, H] for H = {hidden_size}, got {list(decay.shape)}")
    _same_device("decay", decay, x)


def _check_vector(name: str, value: object, hidden_size: int, x: Tensor) -> None:
    value = _tensor(name, value, "[H]")
    if value.shape != (hidden_size,):
        raise ValueError(f"{name} must have shape [H] = [{hidden_size}], got {list(value.shape)}")
    _same_device(name, value, x)


def _check_per_neuron(name: str, value: object, hidden_size: int, x: Tensor) -> None:
    if is_real(value):
        if math.isnan(value):
            raise ValueError(f"{name} must be a number, got NaN")
        return
    value = _tensor(name, value, "[], [1] or [H], or a number")
    if value.dim() > 1 or value.numel() not in (1, hidden_size):
        raise ValueError(
            f"{name} must be one value or one per neuron: shape [], [1] or [H] = [{hidden_size}], "
            f"got {list(value.shape)}"
        )
    _same_device(name, value, x)


def _check_initial_membrane(initial_membrane: object, x: Tensor, hidden_size: int, dtype: torch.dtype) -> None:
    shape = [*x.shape[1:-1], hidden_size]
    kind = "[N, H]" if x.dim() == 3 else "[H]"
    value = _tensor("initial_membrane", initial_membrane, kind)
    if list(value.shape) != shape:
        raise ValueError(
            f"initial_membrane must have shape {kind} = {shape} for x of shape {list(x.shape)}, got {list(value.shape)}"
        )
    if value.dtype not in (dtype, state_dtype(dtype)):
        allowed = " or ".join(dict.fromkeys(str(each) for each in (dtype, state_dtype(dtype))))
        raise ValueError(f"initial_membrane must have dtype {allowed}, got {value.dtype}")
    _same_device("initial_membrane", value, x)


def check_mask(name: str, value: object, shape: list[int], x: Tensor) -> None:
    """One factor for each element of the membrane: a tensor of `shape` on the device of `x`.

    Raises:
        TypeError: it is not a dense floating-point tensor.
        ValueError: its shape or device does not fit.
    """
    expected = "[T, N, H]" if len(shape) == 3 else "[T, H]"
    mask = _tensor(name, value, expected)
    if list(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {expected} = {shape}, got {list(mask.shape)}")
    _same_device(name, mask, x)


def check_spikes(spikes: object, v: Tensor) -> Tensor:
    """What a user's `spike_grad` returned for `v = membrane - threshold`: a floating-point tensor of its shape.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it has another shape.
    """
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        came = f"a tensor of {spikes.dtype}" if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spike_grad must return a floating-point tensor, got {came}")
    if spikes.shape != v.shape:
        raise ValueError(
            f"spike_grad must return a tensor of its argument's shape, {list(v.shape)}, got {list(spikes.shape)}"
        )
    return spikes
