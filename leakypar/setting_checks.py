"""The checks of a layer's settings, each of which gives the setting in the type that the layer keeps.

Each raises a TypeError or ValueError that names the argument, what came and what was expected. `per_neuron`, which runs
at construction, reads the elements of a tensor.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor

from .dtypes import COMPUTE_DTYPES, DTYPE_NAMES

BACKENDS = ("auto", "fused", "rnn")

Bounds = tuple[float, float]
RECTIFIED: Bounds = (0.0, math.inf)
"""The bounds of the membrane that `nn.RNN` and snntorch have: those of relu."""


def check_size(name: str, value: object) -> int:
    """A size as a positive int.

    Raises:
        TypeError: it is not an integer, Python's or NumPy's.
        ValueError: it is below 1.
    """
    if is_bool(value) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool; TypeError if it is anything else."""
    if value is True or value is False:
        return value
    if is_bool(value):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_optional_flag(name: str, value: object) -> bool | None:
    """`value` as a bool, or None; TypeError if it is anything else."""
    if value is not None and not is_bool(value):
        raise TypeError(f"{name} must be a bool or None, got {type(value).__name__}")
    return None if value is None else bool(value)


def check_probability(name: str, value: object) -> float:
    """A probability as a float.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is outside [0, 1], or NaN.
    """
    if not is_real(value):
        raise TypeError(f"{name} must be a number in [0, 1], got {type(value).__name__}")
    probability = float(value)
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    return probability


def check_bounds(name: str, value: object) -> Bounds:
    """The bounds of a membrane, a pair of numbers, as floats.

    Raises:
        TypeError: it is not a pair of real numbers.
        ValueError: the first is not below the second, which NaN never is.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(is_real, value)):
        raise TypeError(f"{name} must be a pair of numbers (lower, upper), got {value!r}")
    lower, upper = map(float, value)
    if not lower < upper:
        raise ValueError(f"{name} must be (lower, upper) with lower < upper, got {value!r}")
    return lower, upper


def check_dtype(dtype: object) -> None:
    """Raise TypeError unless a layer can have parameters of `dtype`, where None is torch's default."""
    if dtype is not None and dtype not in COMPUTE_DTYPES:
        raise TypeError(f"dtype must be one of {DTYPE_NAMES}, got {dtype}")


def check_backend(name: str, value: object) -> str:
    """The name of a backend.

    Raises:
        TypeError: it is not a string.
        ValueError: there is no such backend.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {_quoted(BACKENDS)}, got {type(value).__name__}")
    if value not in BACKENDS:
        raise ValueError(f"{name} must be one of {_quoted(BACKENDS)}, got {value!r}")
    return value


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def per_neuron(name: str, value: object, hidden_size: int) -> Tensor:
    """The values of a constructor argument that is one number for the layer or one for each neuron.

    Args:
        name: the argument's name.
        value: a real number, or a tensor, list, tuple or array of one or `H` of them.
        hidden_size: `H`.

    Returns:
        A tensor of shape `[]`, `[1]` or `[H]`, without gradient: floating-point tensors in the dtype and on the
        device they came, everything else as float64 on the CPU.

    Raises:
        TypeError: it is not made of real numbers.
        ValueError: the number of values is wrong, or one is NaN.
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


def is_real(value: object) -> TypeGuard[Real]:
    """Whether `value` is a real number, Python's or NumPy's; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_bool(value: object) -> bool:
    """Whether `value` is a bool, Python's or NumPy's, which this package does not import."""
    return isinstance(value, bool) or f"{type(value).__module__}.{type(value).__name__}" in (
        "numpy.bool",
        "numpy.bool_",
    )
