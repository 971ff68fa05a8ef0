r"""`convert`: a copy of a network whose layers are this package's, instead of snntorch's.

- `LeakyParallel` becomes this package's, with the same weights and settings. `dropout`, which does nothing in snntorch
  1.0.0, acts here.
- `LinearLeaky` becomes a `SpikesAndMembrane` of a layer with `membrane_bounds=(-inf, inf)` and the decay
  :math:`e^{-1/\tau} = e^{-(1 - \beta)}`. With `learn_beta`, :math:`\tau` is what trains, as it is there.
- `StateLeaky`, which has no weights, becomes the same with a weight of 1 for each channel, which does not train.

snntorch convolves the input with :math:`e^{-t/\tau}` where this package steps, so results are equal but for rounding.
Its `kernel_truncation_steps` forgets what is older; a recurrence has no such window, and that setting is refused. Both
of the latter multiply their spikes by the gain twice there (version 1.0.0), so its square is the gain here.
"""

from __future__ import annotations

import copy
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import launch_plan
from .module import LeakyParallel
from .parametrizations import time_constant
from .setting_checks import check_backend, check_flag

__all__ = ["SpikesAndMembrane", "convert"]


def convert(
    network: nn.Module,
    *,
    strict: bool = True,
    backend: str = "auto",
    plan: launch_plan.Plan | launch_plan.Choice | None = None,
    recompute: bool = False,
) -> nn.Module:
    """A copy of a network in which `LeakyParallel`, `StateLeaky` and `LinearLeaky` of snntorch are this package's.

    Weights, surrogates and settings are kept, and so are a layer that stands in several places and a weight that layers
    share. The network itself is left as it is, and snntorch's other neurons are copied.

    Args:
        network: any module; it may be one of those itself.
        strict: raise an error that lists every layer that cannot be converted. False leaves those as they are, and
            lists them in a warning.
        backend: of every layer.
        plan: of every layer.
        recompute: of every layer.

    Returns:
        The copy. A `StateLeaky` or `LinearLeaky` becomes a `SpikesAndMembrane`, which returns what those do.

    Raises:
        TypeError: an argument is not of a type above.
        ValueError: there is nothing to convert, or a layer cannot be: its class is derived from one of snntorch's, or
            it has hooks, pruned or parametrised weights, quantised membranes, a truncated kernel, or a setting that
            `LeakyParallel` refuses.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a module, got {type(network).__name__}")
    strict = check_flag("strict", strict)
    launch_plan.request(plan, recompute=check_flag("recompute", recompute))
    options = {"backend": check_backend("backend", backend), "plan": plan, "recompute": recompute}
    memo: dict[int, Any] = {}  # of deepcopy: what stands for what
    refused: list[str] = []
    for name, module in network.named_modules():
        make = _maker(module)
        if make is None:
            continue
        try:
            _check_plain(module)
            memo[id(module)] = make(module, memo, options).train(module.training)
        except (TypeError, ValueError) as error:
            refused.append(f"{name or 'the network'}, a {type(module).__name__}: {error}")
    if not memo and not refused:
        raise ValueError("network must have a LeakyParallel, StateLeaky or LinearLeaky of snntorch, got none")
    if refused and strict:
        raise ValueError("convert cannot convert\n  " + "\n  ".join(refused))
    if refused:
        warnings.warn("convert leaves as they are\n  " + "\n  ".join(refused), stacklevel=2)
    converted: nn.Module = copy.deepcopy(network, memo)
    return converted


class SpikesAndMembrane(nn.Module):
    """A layer that is called as snntorch's `StateLeaky` and `LinearLeaky` are: it returns the membrane too.

    Args:
        layer: the layer.
        output: whether to return the spikes; otherwise the membrane alone.
        one_neuron: whether the one neuron of the layer, of one input, stands for each channel of the input.
    """

    def __init__(self, layer: LeakyParallel, output: bool = True, one_neuron: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.output = check_flag("output", output)
        self.one_neuron = check_flag("one_neuron", one_neuron)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """The spikes and the membrane `[T, N, H]`, or the latter alone, for `x` `[T, N, C]`."""
        if self.one_neuron:
            spikes, membrane = (
                each.reshape(x.shape) for each in self.layer(x.reshape(len(x), -1, 1), return_membrane=True)
            )
        else:
            spikes, membrane = self.layer(x, return_membrane=True)
        return (spikes, membrane) if self.output else membrane

    def extra_repr(self) -> str:
        """What is not the default."""
        shown = {"output": (self.output, True), "one_neuron": (self.one_neuron, False)}
        return ", ".join(f"{name}={value}" for name, (value, default) in shown.items() if value != default)


Make = Callable[[Any, dict[int, Any], dict[str, Any]], nn.Module]


def _maker(module: nn.Module) -> Make | None:
    """What converts a module, or None for one that is not snntorch's, which is not imported for this."""
    snntorch = sys.modules.get("snntorch")
    for name, make in (("LeakyParallel", _parallel), ("LinearLeaky", _linear), ("StateLeaky", _state)):
        if isinstance(module, getattr(snntorch, name, ())):
            return make
    return None


def _check_plain(module: nn.Module) -> None:
    """Raises ValueError where a module has what the one in its place would not have."""
    if not type(module).__module__.startswith("snntorch."):
        raise ValueError(
            f"its class {type(module).__qualname__} is derived from snntorch's, whose methods it may change"
        )
    for each in module.modules():
        if parametrize.is_parametrized(each):
            raise ValueError("it has parametrised weights, which would be lost: remove the parametrisations before")
        if any(name.endswith("_orig") for name in each._parameters):
            raise ValueError("it has pruned or normalised weights, which would be lost: make that permanent before")
        if any(hooks for name, hooks in vars(each).items() if name.endswith("_hooks")):
            raise ValueError("it has hooks, which would be lost")


def _made(module: Any, C: int, H: int, gain: Tensor, like: Tensor, settings: dict[str, Any]) -> LeakyParallel:
    """A layer with the settings that all three have. Nothing is drawn from the generator of the weights' device."""
    layer = LeakyParallel(
        C,
        H,
        threshold=module.threshold,
        spike_grad=None if module.surrogate_disable else module.spike_grad,
        surrogate_disable=module.surrogate_disable,
        learn_threshold=isinstance(module.threshold, nn.Parameter),
        graded_spikes_factor=gain,
        learn_graded_spikes_factor=isinstance(module.graded_spikes_factor, nn.Parameter),
        device="meta",
        dtype=like.dtype,
        **settings,
    ).to_empty(device=like.device)
    layer._set_values()
    return layer


def _parallel(module: Any, memo: dict[int, Any], options: dict[str, Any]) -> LeakyParallel:
    theirs = module.rnn
    recurrent = theirs.weight_hh_l0
    dense = bool(recurrent.count_nonzero() != recurrent.diagonal().count_nonzero())
    dropout = module.dropout.p if isinstance(getattr(module, "dropout", None), nn.Dropout) else theirs.dropout
    settings = {"beta": module.beta, "bias": theirs.bias, "dropout": dropout, "weight_hh_enable": dense}
    layer = _made(
        module, theirs.input_size, theirs.hidden_size, module.graded_spikes_factor, recurrent, options | settings
    )
    for name in layer.rnn.names:
        layer.rnn.register_parameter(name, copy.deepcopy(getattr(theirs, name, None), memo))
    return layer


def _linear(module: Any, memo: dict[int, Any], options: dict[str, Any]) -> SpikesAndMembrane:
    H, C = module.linear.weight.shape
    layer = _unclipped(module, C, H, module.linear.bias is not None, module.linear.weight, options)
    layer.rnn.weight_ih_l0 = copy.deepcopy(module.linear.weight, memo)
    if module.linear.bias is not None:
        layer.rnn.bias_ih_l0 = copy.deepcopy(module.linear.bias, memo)
    return SpikesAndMembrane(layer, module.output)


def _state(module: Any, memo: dict[int, Any], options: dict[str, Any]) -> SpikesAndMembrane:
    # snntorch does not keep the number of channels; where they are alike, it does not matter.
    channels = max(each.numel() for each in (module.tau, module.threshold, module.graded_spikes_factor))
    layer = _unclipped(module, channels, channels, False, module.tau, options)
    layer.rnn.weight_ih_l0.requires_grad_(False).copy_(torch.eye(channels))
    return SpikesAndMembrane(layer, module.output, one_neuron=channels == 1)


@torch.no_grad()
def _unclipped(module: Any, C: int, H: int, bias: bool, like: Tensor, options: dict[str, Any]) -> LeakyParallel:
    """The layer of a `StateLeaky`, without its weights; the second bias is zero, and does not train."""
    if module.state_quant:
        raise ValueError("its state_quant, which quantises membranes, would be lost")
    if module.kernel_truncation_steps is not None:
        steps = module.kernel_truncation_steps
        raise ValueError(f"its kernel_truncation_steps={steps}, which forgets what is older, would be lost")
    tau: Tensor = module.tau
    learned = isinstance(tau, nn.Parameter)
    if learned and not bool((tau > time_constant.SHORTEST).all()):
        raise ValueError(
            f"its tau, which is learned, must be above {time_constant.SHORTEST} steps, got {tau.min().item()}"
        )
    settings = {
        "beta": torch.exp(-1 / tau),
        "bias": bias,
        "learn_beta": learned,
        "compact_decay": True,
        "membrane_bounds": (-math.inf, math.inf),
    }
    layer = _made(module, C, H, module.graded_spikes_factor.square(), like, options | settings)
    if bias:
        layer.rnn.bias_hh_l0.zero_().requires_grad_(False)  # type: ignore[union-attr]
    if learned:
        layer.rnn.set_decay(torch.full((H,), 0.5))
        one = tau.numel() == 1 and H > 1
        kept = _OneTimeConstant(H) if one else time_constant()
        parametrize.register_parametrization(layer.rnn, "decay_l0", kept, unsafe=one)
        layer.rnn.parametrizations.decay_l0.original.copy_(tau.reshape(-1))  # type: ignore[union-attr, operator]
    else:
        layer.rnn.set_decay(torch.exp(-1 / tau).expand(H))  # above 1 too, where a constructor's beta would be clamped
    return layer


class _OneTimeConstant(time_constant):
    """One time constant, `[1]`, for all `H` neurons."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons = neurons

    def forward(self, tau: Tensor) -> Tensor:
        return super().forward(tau).expand(self.neurons)

    def right_inverse(self, decay: Tensor) -> Tensor:
        return super().right_inverse(decay[:1])
