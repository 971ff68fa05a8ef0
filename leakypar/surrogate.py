"""Surrogate gradients: what training puts in place of the derivative of a spike.

A neuron spikes where `v = membrane - threshold` is above zero, strictly. The forward pass is that step, the backward
pass multiplies by another function of `v`. The names, arguments and defaults are those of `snntorch.surrogate`,
and so are the derivatives (of its code, version 1.0.0, where its documentation differs), rearranged so that no finite
`v` gives NaN or infinity::

    layer = leakypar.LeakyParallel(128, 10, spike_grad=leakypar.surrogate.fast_sigmoid(slope=40))

Each is an immutable value: equal when its parameters are, hashable, picklable, and callable on a tensor of any floating
dtype. The ones with a `kind` are known to the kernels too, by that number: see `csrc/math/surrogate.h`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor
from typing_extensions import override

from .torch_state import is_exporting, is_tracing

__all__ = [
    "LSO",
    "SFS",
    "SSO",
    "SpikeGrad",
    "SurrogateGradient",
    "atan",
    "custom_surrogate",
    "disabled",
    "fast_sigmoid",
    "heaviside",
    "resolve",
    "sigmoid",
    "spike_rate_escape",
    "straight_through_estimator",
    "triangular",
]

SpikeGrad: TypeAlias = Callable[[Tensor], Tensor]
"""Anything that turns `v = membrane - threshold` into spikes."""

# The kernels compute a float32 layer's derivative in float32, so a parameter must be finite there.
_LARGEST_PARAMETER = torch.finfo(torch.float32).max


def _number(surrogate: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{surrogate}: {name} must be a real number, got {type(value).__name__}")
    number = float(value)
    if not abs(number) <= _LARGEST_PARAMETER:
        raise ValueError(f"{surrogate}: {name} must be finite in float32, got {value}")
    return number


class _Spike(torch.autograd.Function):
    """`1[v > 0]`, with the gradient of a surrogate. Its backward is made of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, surrogate: SurrogateGradient) -> Tensor:
        return (v > 0).to(v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SurrogateGradient], output: Tensor) -> None:
        v, ctx.surrogate = inputs
        ctx.save_for_backward(v)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        (grad,) = grad_outputs
        return ctx.surrogate.gradient(v, grad), None


class SurrogateGradient:
    """Base class of every surrogate gradient. A subclass supplies `derivative`.

    Attributes:
        kind: The number by which the kernels know this surrogate, or None if it only runs in PyTorch.
        parameters: What the kernels take beside the kind: the constructor's arguments in order, padded with zeros.
    """

    kind: ClassVar[int | None] = None
    parameters: tuple[float, float] = (0.0, 0.0)
    _at_least_zero: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(cast(Any, self)):
            value = _number(type(self).__name__, field.name, getattr(self, field.name))
            if field.name in self._at_least_zero and value < 0:
                raise ValueError(f"{type(self).__name__}: {field.name} must not be negative, got {value}")
            object.__setattr__(self, field.name, value)  # the dataclasses below are frozen
        values = () if self.kind is None else tuple(getattr(self, field.name) for field in fields(cast(Any, self)))
        object.__setattr__(self, "parameters", (*values, 0.0, 0.0)[:2])

    def derivative(self, v: Tensor) -> Tensor:
        """The surrogate derivative at every element of `v` (float32 or float64), in its shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} does not define derivative(v)")

    def gradient(self, v: Tensor, grad: Tensor) -> Tensor:
        """`grad * derivative(v)` in the dtype of `v`, computed in float32 where that is a 16-bit one."""
        dtype = torch.promote_types(v.dtype, torch.float32)
        return (grad.to(dtype) * self.derivative(v.to(dtype))).to(v.dtype)

    def __call__(self, v: Tensor) -> Tensor:
        """Spikes where `v` is above zero.

        Args:
            v: membrane - threshold, of any shape and any floating dtype.

        Returns:
            Zeros and ones of the shape and dtype of `v`.

        Raises:
            TypeError: If `v` is not a floating-point tensor.
        """
        if not isinstance(v, Tensor):
            raise TypeError(f"v must be a floating-point tensor, got {type(v).__name__}")
        if not v.is_floating_point():
            raise TypeError(f"v must be a floating-point tensor, got one of {v.dtype}")
        if torch.compiler.is_compiling() or is_tracing():
            return self._recorded(v)
        return cast(Tensor, _Spike.apply(v, self))  # type: ignore[no-untyped-call]

    def _recorded(self, v: Tensor) -> Tensor:
        """`_Spike` in plain operations: a recorded graph keeps no autograd.Function, and its gradient would be lost.

        What is added to the spikes is 0, with the surrogate's derivative. nan_to_num keeps it 0 where `v` is infinite.
        """
        spikes = (v > 0).to(v.dtype)
        records = is_tracing() or (torch.is_grad_enabled() and v.requires_grad)  # torch.jit checks a trace without
        if torch.onnx.is_in_onnx_export() or not records:
            return spikes
        dtype = torch.promote_types(v.dtype, torch.float32)
        finite = v.nan_to_num().to(dtype)
        return spikes + (self.derivative(v.detach().to(dtype)) * (finite - finite.detach())).to(v.dtype)


@dataclass(frozen=True)
class disabled(SurrogateGradient):
    """No gradient: the spikes are constants to autograd.

    Source: `surrogate_disable` of snntorch's neurons.
    """

    kind: ClassVar[int] = 0

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    @override
    def __call__(self, v: Tensor) -> Tensor:
        return super().__call__(v.detach() if isinstance(v, Tensor) else v)


@dataclass(frozen=True)
class atan(SurrogateGradient):
    r"""The derivative of :math:`\arctan(\pi \alpha v / 2) / \pi`, which is snntorch's default.

    .. math:: \frac{\alpha / 2}{1 + (\pi \alpha v / 2)^2}

    Source: Fang et al. (2021), Incorporating Learnable Membrane Time Constant to Enhance Learning of Spiking Neural
    Networks. snntorch documents a further factor :math:`1 / \pi`, which its code does not have.

    Args:
        alpha: Width of the inverse, and twice the height at `v = 0`.
    """

    alpha: float = 2.0
    kind: ClassVar[int] = 1

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * v) ** 2)


@dataclass(frozen=True)
class fast_sigmoid(SurrogateGradient):
    r"""The derivative of :math:`v / (1 + k |v|)`, where :math:`k` is the slope.

    .. math:: \frac{1}{(1 + k |v|)^2}

    Source: Zenke and Ganguli (2018), SuperSpike.

    Args:
        slope: :math:`k`. Not negative, for that would put a pole at :math:`|v| = -1/k`.
    """

    slope: float = 25.0
    kind: ClassVar[int] = 2
    _at_least_zero: ClassVar[tuple[str, ...]] = ("slope",)

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return (1 + self.slope * v.abs()).reciprocal() ** 2


@dataclass(frozen=True)
class sigmoid(SurrogateGradient):
    r"""The derivative of the logistic function of :math:`k v`, where :math:`k` is the slope.

    .. math:: \frac{k e}{(1 + e)^2}, \quad e = \exp(-|k v|)

    The same with :math:`e = \exp(-k v)`, as snntorch has it, gives NaN in float32 where :math:`k v` is below about -88.

    Source: Zenke and Ganguli (2018), SuperSpike.

    Args:
        slope: :math:`k`.
    """

    slope: float = 25.0
    kind: ClassVar[int] = 3

    @override
    def derivative(self, v: Tensor) -> Tensor:
        e = (-(self.slope * v).abs()).exp()
        return self.slope * e / (1 + e) ** 2


@dataclass(frozen=True)
class straight_through_estimator(SurrogateGradient):
    """One everywhere: the gradient passes as if there were no threshold.

    Source: Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients Through Stochastic Neurons.
    """

    kind: ClassVar[int] = 4

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return torch.ones_like(v)


@dataclass(frozen=True)
class triangular(SurrogateGradient):
    """The slope of a triangle with its peak at `v = 0`: `threshold` below it, `-threshold` at and above it.

    Source: `triangular` of `snntorch.surrogate`, its code.

    Args:
        threshold: The slope. It is independent of the layer's threshold.
    """

    threshold: float = 1.0
    kind: ClassVar[int] = 5

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return torch.where(v >= 0, torch.full_like(v, -self.threshold), self.threshold)


@dataclass(frozen=True)
class heaviside(SurrogateGradient):
    """The spike itself: one where `v` is above zero, and zero elsewhere.

    Source: `heaviside` of `snntorch.surrogate`, its code.
    """

    kind: ClassVar[int] = 6

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return (v > 0).to(v.dtype)


@dataclass(frozen=True)
class spike_rate_escape(SurrogateGradient):
    r"""An escape rate, where :math:`k` is the slope. Its peak is at `v = 1`, as in snntorch.

    .. math:: k \exp(-\beta |v - 1|)

    Source: Gerstner and Kistler (2002), Spiking Neuron Models.

    Args:
        beta: :math:`\beta`. Not negative, for the rate would grow without bound.
        slope: :math:`k`.
    """

    beta: float = 1.0
    slope: float = 25.0
    kind: ClassVar[int] = 7
    _at_least_zero: ClassVar[tuple[str, ...]] = ("beta",)

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return self.slope * (-self.beta * (v - 1).abs()).exp()


@dataclass(frozen=True)
class LSO(SurrogateGradient):
    """The leaky spike operator: one where `v` is above zero, `slope` elsewhere.

    Source: `LeakySpikeOperator` of `snntorch.surrogate`, its code. Its own `LSO` calls another class and raises.

    Args:
        slope: The derivative below the threshold.
    """

    slope: float = 0.1
    kind: ClassVar[int] = 8

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return torch.where(v > 0, torch.ones_like(v), self.slope)


@dataclass(frozen=True)
class SFS(SurrogateGradient):
    """The sparse fast sigmoid: that of `fast_sigmoid` where `v` is above `B`, zero elsewhere.

    Source: Perez-Nieves and Goodman (2021), Sparse Spiking Gradient Descent.

    Args:
        slope: As in `fast_sigmoid`. Not negative.
        B: The largest `v` without a gradient.
    """

    slope: float = 25.0
    B: float = 1.0
    kind: ClassVar[int] = 9
    _at_least_zero: ClassVar[tuple[str, ...]] = ("slope",)

    @override
    def derivative(self, v: Tensor) -> Tensor:
        return torch.where(v > self.B, (1 + self.slope * v.abs()).reciprocal() ** 2, 0.0)


@dataclass(frozen=True)
class SSO(SurrogateGradient):
    """The stochastic spike operator: one where `v` is above zero, uniform noise elsewhere.

    The noise is `(U - 0.5 + mean) * variance`, where `U` is uniform on [0, 1). PyTorch draws it in the backward
    pass, so the kernels do not have it.

    Source: `StochasticSpikeOperator` of `snntorch.surrogate`, its code.

    Args:
        mean: Offset of the noise, before scaling.
        variance: Scale of the noise: the width of its interval.
    """

    mean: float = 0.0
    variance: float = 0.2

    @override
    def derivative(self, v: Tensor) -> Tensor:
        noise = (torch.rand_like(v) - 0.5 + self.mean) * self.variance
        return torch.where(v > 0, torch.ones_like(v), noise)


@dataclass(frozen=True)
class custom_surrogate(SurrogateGradient):
    """A surrogate gradient of your own. It runs in PyTorch, on every backend.

    Args:
        custom_surrogate_function: Called in the backward pass as `function(input_, grad_input, spikes)`: `v`, the
            gradient of the spikes, and the spikes, all of one shape and dtype. It returns the gradient of `v`.

    Raises:
        TypeError: the function is not callable; in the backward pass, if it does not return a tensor.
        ValueError: In the backward pass, if it returns a tensor of another shape.
    """

    custom_surrogate_function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        function: object = self.custom_surrogate_function
        if not callable(function):
            came = type(function).__name__
            raise TypeError(f"custom_surrogate: custom_surrogate_function must be callable, got {came}")

    @override
    def _recorded(self, v: Tensor) -> Tensor:
        if is_exporting() and torch.is_grad_enabled() and v.requires_grad:
            raise RuntimeError(
                "custom_surrogate: torch.export would lose its gradient: export under torch.no_grad(), or train with "
                "a surrogate that has a derivative(v)"
            )
        return cast(Tensor, _Spike.apply(v, self))  # type: ignore[no-untyped-call]

    @override
    def gradient(self, v: Tensor, grad: Tensor) -> Tensor:
        # A clone: the function may write to the gradient it is given, and autograd may use that tensor elsewhere.
        result: object = self.custom_surrogate_function(v, grad.clone(), (v > 0).to(v.dtype))
        if not isinstance(result, Tensor):
            came = type(result).__name__
            raise TypeError(f"custom_surrogate: custom_surrogate_function must return a tensor, got {came}")
        if result.shape != v.shape:
            shapes = f"{list(result.shape)} for v of shape {list(v.shape)}"
            raise ValueError(f"custom_surrogate: custom_surrogate_function returned a gradient of shape {shapes}")
        return result.to(v.dtype)


_DEFAULT = atan()


def resolve(spike_grad: SpikeGrad | None) -> SpikeGrad:
    """The callable that a `spike_grad` argument stands for, as one the kernels know where there is one.

    What `snntorch.surrogate` made, a closure or an object, becomes the equal object of this module, so that a model
    whose layers were replaced, and whose surrogates were not, still runs in the kernels. Where there is no equal
    (`LSO`, which raises there; parameters that are tensors, or that this module refuses), it runs as it is, in PyTorch.

    Args:
        spike_grad: None for `atan()`, an object of this module, or any callable from `v = membrane - threshold` to
            spikes.

    Returns:
        A `SurrogateGradient`, or `spike_grad` itself.

    Raises:
        TypeError: `spike_grad` is neither None nor callable.
    """
    if spike_grad is None:
        return _DEFAULT
    if isinstance(spike_grad, SurrogateGradient):
        return spike_grad
    if isinstance(spike_grad, type) and issubclass(spike_grad, SurrogateGradient):
        name = spike_grad.__name__
        raise TypeError(f"spike_grad must be a surrogate gradient, got the class {name}: call it, as in {name}()")
    if not callable(spike_grad):
        raise TypeError(f"spike_grad must be None or a callable, got {type(spike_grad).__name__}")
    from .snntorch_surrogates import recognised  # which imports this module

    given = cast(SpikeGrad, spike_grad)
    return recognised(given) or given


def kernel_of(spike_grad: SpikeGrad | None) -> tuple[int, float, float] | None:
    """What the kernels know a surrogate by, its kind and parameters, or None for one that runs in PyTorch."""
    if isinstance(spike_grad, SurrogateGradient) and spike_grad.kind is not None:
        return (spike_grad.kind, *spike_grad.parameters)
    return None


# What a checkpoint may hold where torch.load takes weights only, as the default is: values without code of their own. A
# function of a custom_surrogate is still its owner's to allow.
torch.serialization.add_safe_globals(
    [
        LSO,
        SFS,
        SSO,
        atan,
        custom_surrogate,
        disabled,
        fast_sigmoid,
        heaviside,
        sigmoid,
        spike_rate_escape,
        straight_through_estimator,
        triangular,
    ]
)
