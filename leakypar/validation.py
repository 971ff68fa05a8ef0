"""Argument checks that the module and the functional forms share.

Each function checks one thing and raises a TypeError or ValueError that names the argument, what came and what was
expected. Only `per_neuron`, which runs at construction, reads the elements of a tensor: the others never wait for a
device. Sizes are `T` time steps, `N` batch, `C` input features and `H` neurons.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

BACKENDS = ("auto", "fused", "rnn")
COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_DTYPE_NAMES = ", ".join(str(dtype) for dtype in COMPUTE_DTYPES)


def check_tensor(name: str, value: object, expected: str) -> Tensor:
    """`value` as a dense tensor of float16, bfloat16, float32 or float64.

    Args:
        name: The argument's name.
        value: What came.
        expected: Its shape in words, as in `"[T, N, C] or [T, C]"`.

    Raises:
        TypeError: If it is something else, a PackedSequence included.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, PackedSequence):
            raise TypeError(
                f"{name} must be a tensor {expected}, got a PackedSequence: pad it with "
                "torch.nn.utils.rnn.pad_packed_sequence and ignore the steps beyond each sequence's length"
            )
        raise TypeError(f"{name} must be a tensor {expected}, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor {expected}, got layout {value.layout}")
    if value.dtype not in COMPUTE_DTYPES:
        raise TypeError(f"{name} must be a tensor of {_DTYPE_NAMES}, got {value.dtype}")
    return value


def check_input(x: object, weight: object) -> None:
    """The input sequence against the input weights: types, ranks, features and device.

    Args:
        x: `[T, N, C]` or `[T, C]`.
        weight: `[H, C]`.

    Raises:
        TypeError: If either is not a dense floating-point tensor.
        ValueError: If a shape does not fit, or the devices differ.
    """
    x = check_tensor("x", x, "[T, N, C] or [T, C]")
    weight = check_tensor("weight", weight, "[H, C]")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape [H, C], got {list(weight.shape)}")
    if x.dim() not in (2, 3):
        raise ValueError(f"x must have shape [T, N, C], or [T, C] without a batch, got {list(x.shape)}")
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must have {weight.shape[1]} input features in its last dimension, got {x.shape[-1]} "
            f"in shape {list(x.shape)}"
        )
    check_device("weight", weight, x)


def check_device(name: str, value: Tensor, x: Tensor) -> None:
    """Raise ValueError unless `value` lies on the device of the input `x`."""
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype of the products, the membrane trace and the spikes.

    It is that of `x` and `weight`, or autocast's where autocast is on for their device. As everywhere under
    autocast, float64 is left alone.

    Raises:
        ValueError: If the two differ and autocast does not settle it.
    """
    if autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype(x.device.type)
    if x.dtype != weight.dtype:
        raise ValueError(
            f"x must have the dtype of the weights, {weight.dtype}, got {x.dtype}: "
            f"convert the input with x.to({weight.dtype}) or the layer with layer.to({x.dtype})"
        )
    return x.dtype


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a device type; False for those that have none, such as `"meta"`."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile of torch 2.11 cannot trace it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which membranes are carried and gradients summed: float64 for float64, float32 for the others."""
    return torch.promote_types(dtype, torch.float32)


def check_initial_membrane(initial: object, x: Tensor, hidden_size: int, dtype: torch.dtype) -> None:
    """The membrane before the first step, or None for zeros.

    Args:
        initial: `[N, H]`, or `[H]` where `x` is `[T, C]`, in the compute dtype or the state dtype.
        x: The input, already checked.
        hidden_size: `H`.
        dtype: The compute dtype.

    Raises:
        TypeError: If it is not a dense floating-point tensor.
        ValueError: If its shape, dtype or device does not fit.
    """
    if initial is None:
        return
    shape = [*x.shape[1:-1], hidden_size]
    kind = "[N, H]" if x.dim() == 3 else "[H]"
    initial = check_tensor("initial_membrane", initial, kind)
    if list(initial.shape) != shape:
        raise ValueError(
            f"initial_membrane must have shape {kind} = {shape} for x of shape {list(x.shape)}, "
            f"got {list(initial.shape)}"
        )
    if initial.dtype not in (dtype, state_dtype(dtype)):
        allowed = " or ".join(dict.fromkeys(str(each) for each in (dtype, state_dtype(dtype))))
        raise ValueError(f"initial_membrane must have dtype {allowed}, got {initial.dtype}")
    check_device("initial_membrane", initial, x)


def check_vector(name: str, value: object, hidden_size: int, x: Tensor) -> None:
    """One number per neuron, `[H]`: a bias or the decay.

    Raises:
        TypeError: If it is not a dense floating-point tensor.
        ValueError: If its shape or device does not fit.
    """
    value = check_tensor(name, value, "[H]")
    if value.shape != (hidden_size,):
        raise ValueError(f"{name} must have shape [H] = [{hidden_size}], got {list(value.shape)}")
    check_device(name, value, x)


def check_decay(decay: object, hidden_size: int, x: Tensor) -> None:
    """The recurrent weights: `[H]`, a decay per neuron, or dense, `[H, H]`.

    Raises:
        TypeError: If it is not a dense floating-point tensor.
        ValueError: If its shape or device does not fit.
    """
    decay = check_tensor("decay", decay, "[H] or [H, H]")
    if list(decay.shape) not in ([hidden_size], [hidden_size] * 2):
        raise ValueError(f"decay must have shape [H] or [H, H] for H = {hidden_size}, got {list(decay.shape)}")
    check_device("decay", decay, x)


def check_per_neuron(name: str, value: object, hidden_size: int, x: Tensor) -> None:
    """A threshold or gain: a number, or a tensor of shape `[]`, `[1]` or `[H]`.

    Raises:
        TypeError: If it is neither a real number nor a dense floating-point tensor.
        ValueError: If it is NaN, or a tensor whose shape or device does not fit.
    """
    if not isinstance(value, bool) and isinstance(value, Real):
        if math.isnan(value):
            raise ValueError(f"{name} must be a number, got NaN")
        return
    value = check_tensor(name, value, "[], [1] or [H], or a number")
    if value.dim() > 1 or value.numel() not in (1, hidden_size):
        raise ValueError(
            f"{name} must be one value or one per neuron: shape [], [1] or [H] = [{hidden_size}], "
            f"got {list(value.shape)}"
        )
    check_device(name, value, x)


def per_neuron(name: str, value: object, hidden_size: int) -> Tensor:
    """The values of a constructor argument that is one number for the layer or one for each neuron.

    Args:
        name: The argument's name.
        value: A real number, or a tensor, list, tuple or array of one or `H` of them.
        hidden_size: `H`.

    Returns:
        A tensor of shape `[]`, `[1]` or `[H]`, without gradient: floating-point tensors in the dtype and on the
        device they came, everything else as float64 on the CPU.

    Raises:
        TypeError: If it is not made of real numbers.
        ValueError: If the number of values is wrong, or one is NaN.
    """
    values = value.detach() if isinstance(value, Tensor) else _from_numbers(name, value)
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"{name} must be made of real numbers, got {values.dtype}")
    if not values.is_floating_point():
        values = values.double()
    if values.dim() > 1 or values.numel() not in (1, hidden_size):
        raise ValueError(
            f"{name} must be one value or one per neuron, hidden_size = {hidden_size} of them, "
            f"got {values.numel()} values in shape {list(values.shape)}"
        )
    if not values.is_meta and bool(values.isnan().any()):
        raise ValueError(f"{name} must be made of numbers, got NaN")
    return values


def _from_numbers(name: str, value: object) -> Tensor:
    try:
        values = torch.tensor(value, device="cpu")
        # A Python float keeps its 53 bits; a complex or boolean tensor is left for the caller to name.
        return torch.tensor(value, dtype=torch.float64, device="cpu") if values.is_floating_point() else values
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a real number, or a tensor, list or array of them, got {type(value).__name__}: {error}"
        ) from error


def check_spikes(spikes: object, v: Tensor) -> Tensor:
    """What a user's `spike_grad` returned for `v = membrane - threshold`: a floating-point tensor of its shape.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has another shape.
    """
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        came = f"a tensor of {spikes.dtype}" if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spike_grad must return a floating-point tensor, got {came}")
    if spikes.shape != v.shape:
        raise ValueError(
            f"spike_grad must return a tensor of its argument's shape, {list(v.shape)}, got {list(spikes.shape)}"
        )
    return spikes


def check_size(name: str, value: object) -> int:
    """A size as a positive int.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool; TypeError if it is anything else."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def check_probability(name: str, value: object) -> float:
    """A probability as a float.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is outside [0, 1], or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in [0, 1], got {type(value).__name__}")
    probability = float(value)
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    return probability


def check_dtype(dtype: object) -> None:
    """Raise TypeError unless a layer can have parameters of `dtype`, where None is torch's default."""
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise TypeError(f"dtype must be one of {_DTYPE_NAMES}, got {dtype}")


def check_backend(name: str, value: object) -> str:
    """The name of a backend.

    Raises:
        TypeError: If it is not a string.
        ValueError: If there is no such backend.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {_quoted(BACKENDS)}, got {type(value).__name__}")
    if value not in BACKENDS:
        raise ValueError(f"{name} must be one of {_quoted(BACKENDS)}, got {value!r}")
    return value


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
