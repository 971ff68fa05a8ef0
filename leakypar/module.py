"""`LeakyParallel`, the layer as a module: its parameters, and the choice of what runs them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional, launch_plan, onnx, ops, reference, rnn, surrogate
from .build_info import warn_of_a_lesser_build
from .lengths import run_packed
from .parameters import RecurrentParameters
from .rounding import warn_of_losses
from .setting_checks import (
    RECTIFIED,
    Bounds,
    check_backend,
    check_bounds,
    check_dtype,
    check_flag,
    check_optional_flag,
    check_probability,
    check_size,
    per_neuron,
)
from .surrogate import SpikeGrad

__all__ = ["BACKEND_VARIABLE", "LeakyParallel"]

BACKEND_VARIABLE = "LEAKYPAR_BACKEND"
"""The environment variable that stands in for `backend="auto"`."""

_DISABLED = surrogate.disabled()


class LeakyParallel(nn.Module):
    r"""A linear layer followed by leaky spiking neurons, over a whole sequence at once.

    .. math::

        u_t &= W x_t + b_{ih} + b_{hh} \\
        h_t &= \mathrm{clamp}(w \, h_{t-1} + u_t) \\
        S_t &= \mathrm{gain} \cdot 1[\mathrm{dropout}(h_t) - \mathrm{threshold} > 0]

    Sizes are `T` time steps, `N` batch, `C = input_size` features and `H = hidden_size` neurons. `h` is the membrane,
    which nothing resets, and `w` its decay. The arguments up to `dtype`, the initial values for a seed and the
    `state_dict` are those of `snntorch.LeakyParallel` 1.0.0, whose code is the source of these formulas.

    Only the diagonal of `rnn.weight_hh_l0` is ever read, so only the diagonal has a gradient: after a deepcopy, a load
    or a pickle as well. `weight_hh_enable=True` reads all of it. `compact_decay=True` has the diagonal alone.

    Warning: `beta=None`, the default that snntorch has too, draws small decays of either sign, and weights from the
    same small interval: at a threshold of 1 such neurons often never fire, and what never fires learns slowly or not at
    all. Give a `beta`, such as 0.9, and scale the weights with `leakypar.init.firing_rate_`.

    Args:
        input_size: `C`.
        hidden_size: `H`.
        beta: decay of the membrane, one number or `H` of them (a number, or a tensor, list or array), clamped to [0, 1]
            here and copied into the diagonal of `rnn.weight_hh_l0`. Training may move it anywhere from there. With
            `weight_hh_enable=True`, row i is filled with the value of neuron i. None keeps the values that `nn.RNN`
            draws, from the interval :math:`\pm 1 / \sqrt{H}`.
        bias: whether there are `rnn.bias_ih_l0` and `rnn.bias_hh_l0`.
        threshold: a neuron spikes where its membrane is strictly above it. One number or `H`.
        dropout: probability with which, in training, each value of the membrane is zeroed before the threshold, the
            others being scaled by 1 / (1 - dropout). The recurrence does not see it. For one seed of PyTorch's
            generator, the fused kernels drop other values than `nn.RNN`'s path does.
        spike_grad: surrogate gradient of the spikes: an object of `leakypar.surrogate`, which runs in the kernels, or
            any callable from membrane - threshold to spikes. None is `leakypar.surrogate.atan()`.
        surrogate_disable: let no gradient pass through the spikes to the membrane, whatever `spike_grad` is.
        learn_beta: whether the decay, in `rnn.weight_hh_l0`, requires a gradient.
        learn_threshold: whether the threshold is a parameter, rather than a buffer.
        graded_spikes_factor: the gain, which is the value of a spike. One number or `H`.
        learn_graded_spikes_factor: whether the gain is a parameter, rather than a buffer.
        weight_hh_enable: use the whole recurrent matrix, so that neurons see each other. It has no parallel scan, and
            runs through `nn.RNN`.
        device: device of every parameter and buffer.
        dtype: float16, bfloat16, float32 or float64, of every parameter and buffer.
        backend: what runs the layer, chosen at each call by the device of the parameters:

            - `"auto"`: the fused kernels for CUDA, `nn.RNN` elsewhere. Where the CUDA kernels were not built, `nn.RNN`
              with one warning. The environment variable `LEAKYPAR_BACKEND`, if set, replaces this choice by its value.
            - `"fused"`: the fused kernels, on the CPU too.
            - `"rnn"`: the kernel of `nn.RNN` (cuDNN on CUDA).

        plan: what to force on the fused kernels: `"sequential"`, `"look_back"`, `"project_scan"`, `"events"` or a
            `leakypar.Plan`. None lets them choose. A call that runs through `nn.RNN` under `"auto"` does not use it.
        recompute: let training keep a sixteenth of the membrane's memory at most, and rebuild the membrane in the
            backward, for one more product of input and weights. Only the fused kernels can, and the spike must run in
            them.
        binary_input: whether the input is zeros and one other value, as the spikes of a layer with one gain are.
            Training then keeps it as bits, a 32nd of float32, and a CPU multiplies it by additions where few are ones.
            None: a CPU finds out, and a GPU, which would have to be waited for, takes it for dense. True: promised,
            which a CPU checks at once, and a GPU asserts without waiting, of what lies beyond the lengths too. False:
            not looked at. Of the fused kernels alone.
        compact_decay: hold the decay as `rnn.decay_l0` `[H]`, rather than as the diagonal of `rnn.weight_hh_l0`
            `[H, H]`. Loading takes a diagonal matrix too, and `snntorch_state_dict` gives it. The values for a seed are
            the same.
        membrane_bounds: what the membrane is clamped to after each step: numbers (lower, upper), lower < upper.
            `(0, inf)` is the relu of `nn.RNN` and snntorch, `(-inf, inf)` no bound. The derivative is 1 strictly
            between them, 0 at and beyond them. `nn.RNN` has relu's alone: with others "auto" runs the fused kernels,
            or where they were not built the loop of `leakypar.reference`, with one warning.

    Attributes:
        rnn: holds `weight_ih_l0` `[H, C]`, `weight_hh_l0` `[H, H]` or `decay_l0` `[H]`, `bias_ih_l0` and `bias_hh_l0`
            `[H]` or None.
        beta: buffer with the initial decay, `[1]` or `[H]`, or None. It is not used after construction.
        threshold: parameter or buffer, `[]`, `[1]` or `[H]`, as it was given.
        graded_spikes_factor: parameter or buffer, `[]`, `[1]` or `[H]`, as it was given.
        weight_hh_enable: the argument, a bool (in snntorch this name is a method).

    Raises:
        TypeError: an argument is not of a type above.
        ValueError: an argument is out of range, NaN or of the wrong length; or contradicts another: `backend="fused"`
            has no dense recurrent matrix, `backend="rnn"` no plan, no recomputation, no events and no other bounds,
            `weight_hh_enable=True` no compact decay either.

    Examples:
        >>> layer = LeakyParallel(input_size=784, hidden_size=128, beta=0.5)
        >>> spikes = layer(torch.rand(25, 8, 784))
        >>> spikes.shape
        torch.Size([25, 8, 128])
    """

    beta: Tensor | None
    threshold: Tensor
    graded_spikes_factor: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        beta: Any = None,
        bias: bool = True,
        threshold: Any = 1.0,
        dropout: float = 0.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        graded_spikes_factor: Any = 1.0,
        learn_graded_spikes_factor: bool = False,
        weight_hh_enable: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        plan: launch_plan.Plan | launch_plan.Choice | None = None,
        recompute: bool = False,
        binary_input: bool | None = None,
        compact_decay: bool = False,
        membrane_bounds: Bounds = RECTIFIED,
    ) -> None:
        super().__init__()
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.__dict__["compact_decay"] = check_flag("compact_decay", compact_decay)
        self.dropout = dropout
        self.spike_grad = spike_grad  # type: ignore[assignment]  # None becomes the default, in __setattr__
        self.surrogate_disable = surrogate_disable
        self.weight_hh_enable = weight_hh_enable
        self.backend = backend
        self.plan = plan
        self.recompute = recompute
        self.binary_input = binary_input
        self.membrane_bounds = membrane_bounds
        bias = check_flag("bias", bias)
        learn_beta = check_flag("learn_beta", learn_beta)
        learned = {
            "threshold": check_flag("learn_threshold", learn_threshold),
            "graded_spikes_factor": check_flag("learn_graded_spikes_factor", learn_graded_spikes_factor),
        }
        check_dtype(dtype)
        _environment()

        self.rnn = RecurrentParameters(self.input_size, self.hidden_size, bias, device, dtype, self.compact_decay)
        weight = getattr(self.rnn, self.rnn.names[1])
        weight.requires_grad_(learn_beta)

        given = {"beta": beta, "threshold": threshold, "graded_spikes_factor": graded_spikes_factor}
        self._given = {
            name: per_neuron(name, value, self.hidden_size).clone()
            for name, value in given.items()
            if name != "beta" or value is not None
        }
        self.register_buffer("beta", None)
        if beta is not None:
            self.beta = torch.empty_like(self._given["beta"].reshape(-1), device=weight.device, dtype=weight.dtype)
        for name, learn in learned.items():
            values = torch.empty_like(self._given[name], device=weight.device, dtype=weight.dtype)
            if learn:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)
        self._set_values()

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks and resolves a setting where it changes, with the constructor's errors, so that no call has to."""
        check = _SETTINGS.get(name)
        if check is not None:
            value = check(name, value)
            settings = {**self.__dict__, name: value}
            _check_together(settings)
            if name in ("plan", "recompute", "binary_input"):
                self.__dict__["_request"] = launch_plan.request(
                    settings.get("plan"),
                    recompute=settings.get("recompute", False),
                    binary_input=settings.get("binary_input"),
                )
            elif name == "membrane_bounds":  # which torch.compile may take for numbers that vary, but not this
                self.__dict__["_is_rectified"] = value == RECTIFIED
            elif name == "spike_grad" and not isinstance(value, nn.Module):
                self._modules.pop(name, None)
        elif name in ("threshold", "graded_spikes_factor"):
            held = self._parameters.get(name, self._buffers.get(name))
            if held is not None:
                values = per_neuron(name, value, self.hidden_size)
                if values.dtype != getattr(value, "dtype", None):  # numbers, rather than a tensor to be held as it is
                    values = values.to(device=held.device, dtype=held.dtype)
                    value = nn.Parameter(values, held.requires_grad) if name in self._parameters else values
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draws the weights anew, as the constructor does, and restores the decay, the threshold and the gain.

        It reads nothing of what it replaces, so it also fills a layer after `to_empty`.
        """
        self.rnn.reset_parameters()
        self._set_values()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LeakyParallel:
        """What every conversion goes through: `.to()`, `.half()`, `.cuda()`."""
        before = self._neurons()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        warn_of_losses(before, self._neurons())
        return self

    @torch.no_grad()
    def _neurons(self) -> dict[str, Tensor]:
        """The decay, the threshold and the gain as they are held now, where they are plain tensors."""
        held = {"threshold": self.threshold, "gain": self.graded_spikes_factor}
        if not self.weight_hh_enable:
            recurrent = getattr(self.rnn, self.rnn.names[1])
            if type(recurrent) in (Tensor, nn.Parameter):
                held["decay"] = recurrent.clone() if self.compact_decay else recurrent.diagonal().clone()
        return {name: value.detach() for name, value in held.items() if type(value) in (Tensor, nn.Parameter)}

    @torch.no_grad()
    def _set_values(self) -> None:
        """The decay, the threshold and the gain as they were given."""
        for name, values in self._given.items():
            getattr(self, name).copy_(values.clamp(0, 1).reshape(-1) if name == "beta" else values)
        if self.weight_hh_enable:
            if self.beta is not None:
                weight = self.rnn.weight_hh_l0
                weight.copy_(self.beta.unsqueeze(1).expand_as(weight))
        elif self.beta is not None:
            self.rnn.set_decay(self.beta.expand(self.hidden_size))
        elif not self.compact_decay:
            self.rnn.set_decay(self.rnn.decay())
        given = {name: self._given[key] for name, key in (("threshold", "threshold"), ("gain", "graded_spikes_factor"))}
        if self.beta is not None and not self.weight_hh_enable:
            given["decay"] = self._given["beta"].clamp(0, 1).expand(self.hidden_size)
        warn_of_losses(given, self._neurons())

    @property
    def compact_decay(self) -> bool:
        """Whether the decay is held as `rnn.decay_l0` `[H]`; chosen at construction."""
        chosen: bool = self.__dict__["compact_decay"]
        return chosen

    def snntorch_state_dict(self) -> dict[str, Tensor]:
        """The `state_dict` of the `snntorch.LeakyParallel` that has these values; parametrised ones as they act.

        snntorch has no `membrane_bounds`: its layer is the same one if these are `(0, inf)`.
        """
        weight, recurrent, bias_ih, bias_hh = self.rnn()
        values = {
            "beta": self.beta,
            "threshold": self.threshold,
            "graded_spikes_factor": self.graded_spikes_factor,
            "rnn.weight_ih_l0": weight,
            "rnn.weight_hh_l0": torch.diag_embed(recurrent) if self.compact_decay else recurrent,
            "rnn.bias_ih_l0": bias_ih,
            "rnn.bias_hh_l0": bias_hh,
        }
        return {name: value.detach() for name, value in values.items() if value is not None}

    def forward(
        self,
        x: Tensor | PackedSequence,
        *,
        initial_membrane: Tensor | None = None,
        lengths: Tensor | None = None,
        return_membrane: bool = False,
        return_state: bool = False,
    ) -> Any:
        """Runs a whole sequence.

        A long sequence fed in pieces, each from the final membrane of the one before, has the membrane that it has in
        one piece, to rounding: a product of another size, or a scan cut elsewhere, adds up in another order. So a spike
        can differ where the membrane is that close to the threshold.

        Args:
            x: `[T, N, C]`, or `[T, C]` for one sequence, in the layer's dtype. `T` and `N` may be 0. Under autocast,
                float16, bfloat16 or float32, whichever of them the layer has; a float64 input wants a float64 layer,
                and the other way round, and then autocast changes nothing. A `PackedSequence` of sequences `[T, C]`
                gives one for each result.
            initial_membrane: membrane before the first step, `[N, H]` (`[H]` for one sequence), in the compute dtype or
                the state dtype (float64 for float64, else float32), or None for zeros.
            lengths: how many steps each sequence has, int64 `[N]` (`[]` for one sequence) on the layer's device, from 0
                to `T`; None where all have `T`. After its last step a sequence spikes no more, its membrane is held,
                and no gradient comes from there, whatever `x` is there; its final membrane is its own.
            return_membrane: also return the membrane at every step, before dropout. The spikes' gradient then flows
                through it: hooks and `retain_grad` see it, on every backend.
            return_state: also return the membrane after the last step.

        Returns:
            The spikes `[T, N, H]` (`[T, H]` for one sequence) in the compute dtype: the layer's, or autocast's. Then,
            if asked for, the membrane in the same shape and dtype, and the final membrane `[N, H]` (`[H]`) in the state
            dtype, as a tuple. All are differentiable.

        Raises:
            TypeError: an argument is not a dense tensor, of floating-point numbers but for the lengths.
            ValueError: an argument has the wrong shape, dtype or device, or, on a CPU, a length is out of range, or `x`
                breaks the promise of `binary_input=True`.
            RuntimeError: the backend is "fused", and the kernels were not built for the device.
        """
        if isinstance(x, PackedSequence):
            returned = {"return_membrane": return_membrane, "return_state": return_state}
            return run_packed(self.forward, x, initial_membrane, lengths, **returned)
        # Tables of the module, because an attribute that is a parameter costs a search of all of them.
        weight, recurrent, bias_ih, bias_hh = self._modules["rnn"]()  # type: ignore[misc]
        threshold, gain = self._buffers.get("threshold"), self._buffers.get("graded_spikes_factor")
        dense = self.weight_hh_enable
        options: dict[str, Any] = {
            "initial_membrane": initial_membrane,
            "lengths": lengths,
            "spike_grad": _DISABLED if self.surrogate_disable else self.spike_grad,
            "dropout": self.dropout if self.training else 0.0,
            "return_membrane": return_membrane,
            "return_state": return_state,
        }
        run: Callable[..., Tensor | tuple[Tensor, ...]] = rnn.leaky_parallel
        rectified = self._is_rectified
        try:  # either is a view, which torch refuses of memory that is not there
            decay = recurrent[:] if recurrent.dim() == 1 else recurrent.diagonal()
        except RuntimeError:
            if recurrent.untyped_storage().size():
                raise
            raise RuntimeError(
                "the parameters of rnn were freed after its call, as fully_shard(layer.rnn) does: "
                "use fully_shard(layer), or reshard_after_forward=False"
            ) from None
        decay = recurrent if dense else decay
        if onnx.in_export():  # ONNX has nn.RNN
            onnx.attributes_of(self.membrane_bounds)  # refuses what it does not have
            onnx.check_lengths(lengths)
            options["bounds"] = self.membrane_bounds
            decay = recurrent if dense else onnx.diagonal_matrix(recurrent)
        elif _runs_fused(self.backend, weight.device.type, dense, rectified):
            options["recompute"], options["request"] = self.recompute, self._request
            options["binary_input"] = self.binary_input
            options["bounds"] = self.membrane_bounds
            run = functional.run
        elif not rectified:
            options["membrane_bounds"] = self.membrane_bounds
            run = _run_reference
        return run(
            x,
            weight,
            decay,
            bias_ih,
            bias_hh,
            self.threshold if threshold is None else threshold,
            self.graded_spikes_factor if gain is None else gain,
            **options,
        )

    def extra_repr(self) -> str:
        """The sizes, and every setting that is not the default."""
        weights = self.rnn
        settings = {
            "bias": (weights.bias_ih_l0 is not None, True),
            "threshold": (_shown(self.threshold), "1"),
            "dropout": (self.dropout, 0.0),
            "spike_grad": (
                self.spike_grad
                if surrogate.kernel_of(self.spike_grad)
                else f"{self.spike_grad} (runs in PyTorch: no kernel has it)",
                surrogate.resolve(None),
            ),
            "surrogate_disable": (self.surrogate_disable, False),
            "learn_beta": (getattr(weights, weights.names[1]).requires_grad, False),
            "graded_spikes_factor": (_shown(self.graded_spikes_factor), "1"),
            "weight_hh_enable": (self.weight_hh_enable, False),
            "backend": (self.backend, "auto"),
            "plan": (self.plan, None),
            "recompute": (self.recompute, False),
            "binary_input": (self.binary_input, None),
            "compact_decay": (self.compact_decay, False),
            "membrane_bounds": (self.membrane_bounds, RECTIFIED),
        }
        shown = [f"{name}={value}" for name, (value, default) in settings.items() if value != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown])


def _shown(values: Tensor) -> str:
    text = "unknown" if values.is_meta else f"{values.item():.4g}" if values.numel() == 1 else "per neuron"
    return f"{text} (learned)" if isinstance(values, nn.Parameter) else text


def _check_plan(name: str, value: Any) -> Any:
    launch_plan.request(value)
    return value


def _check_spike_grad(name: str, value: Any) -> SpikeGrad:
    return surrogate.resolve(value)


_SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    "dropout": check_probability,
    "spike_grad": _check_spike_grad,
    "surrogate_disable": check_flag,
    "weight_hh_enable": check_flag,
    "backend": check_backend,
    "plan": _check_plan,
    "recompute": check_flag,
    "binary_input": check_optional_flag,
    "membrane_bounds": check_bounds,
}


def _check_together(settings: dict[str, Any]) -> None:
    """Raises ValueError where a setting contradicts another; those that are not there yet contradict nothing."""
    backend, dense = settings.get("backend"), settings.get("weight_hh_enable")
    if dense and backend == "fused":
        raise ValueError(
            'backend must be "auto" or "rnn" with weight_hh_enable=True, got "fused": '
            "a dense recurrent matrix has no parallel scan"
        )
    if dense and settings.get("compact_decay"):
        raise ValueError(
            "compact_decay must be False with weight_hh_enable=True, got True: a dense recurrent matrix has no [H]"
        )
    if backend == "rnn" or dense:
        given = 'backend="rnn"' if backend == "rnn" else "weight_hh_enable=True"
        if settings.get("plan") is not None:
            raise ValueError(f"plan must be None with {given}, which runs nn.RNN, got {settings['plan']!r}")
        if settings.get("recompute"):
            raise ValueError(f"recompute must be False with {given}, which runs nn.RNN, got True")
        if settings.get("binary_input") is not None:
            raise ValueError(
                f"binary_input must be None with {given}, which runs nn.RNN, got {settings['binary_input']}"
            )
        bounds = settings.get("membrane_bounds", RECTIFIED)
        if bounds != RECTIFIED:
            raise ValueError(f"membrane_bounds must be (0, inf) with {given}, which runs nn.RNN, got {bounds}")


def _environment() -> str:
    """What the environment puts in place of `backend="auto"`; a variable that is empty is none."""
    return check_backend(BACKEND_VARIABLE, os.environ.get(BACKEND_VARIABLE) or "auto")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile traces none of it
def _runs_fused(backend: str, device_type: str, dense: bool, rectified: bool) -> bool:
    """Whether a call on a device runs the fused kernels, rather than `nn.RNN`, or what stands in for it."""
    warn_of_a_lesser_build()
    if backend == "auto":
        backend = _environment()
    if dense or (rectified and (backend == "rnn" or (backend == "auto" and device_type != "cuda"))):
        return False
    available = ops.is_available(device_type)
    if not available:
        reason = ops.unavailable_reason(device_type)
        if backend == "fused":
            raise RuntimeError(f'backend is "fused", and the fused kernels cannot run: {reason}')
        instead = 'nn.RNN (backend="rnn" chooses that silently)' if rectified else "the loop of leakypar.reference"
        _warn_once(f"LeakyParallel runs through {instead}: {reason}")
    return available


def _run_reference(x: Tensor, weight: Tensor, *parameters: Any, dropout: float, **options: Any) -> Any:
    mask = nn.functional.dropout(weight.new_ones(*x.shape[:-1], len(weight)), dropout) if dropout > 0 else None
    return reference.leaky_parallel(x, weight, *parameters, dropout_mask=mask, **options)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(reason, stacklevel=2)
