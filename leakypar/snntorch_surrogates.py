"""The surrogates of `snntorch.surrogate`, recognised by their names and parameters, without importing snntorch.

Up to version 1.0.0 each is a closure, `atan.<locals>.inner`. Later versions make objects of classes, which can be
pickled; the first is `ATanSurrogate`. What such a class computes is not known here, so it is tried.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from . import surrogate
from .surrogate import SpikeGrad, SurrogateGradient

_NAMES: dict[str, type[SurrogateGradient]] = {
    "atan": surrogate.atan,
    "fastsigmoid": surrogate.fast_sigmoid,
    "sigmoid": surrogate.sigmoid,
    "straightthroughestimator": surrogate.straight_through_estimator,
    "triangular": surrogate.triangular,
    "heaviside": surrogate.heaviside,
    "spikerateescape": surrogate.spike_rate_escape,
    "sso": surrogate.SSO,
    "stochasticspikeoperator": surrogate.SSO,
    "sfs": surrogate.SFS,
    "sparsefastsigmoid": surrogate.SFS,
    "leakyspikeoperator": surrogate.LSO,
}


def recognised(spike_grad: SpikeGrad) -> SurrogateGradient | None:
    """The surrogate of this package that is equal to one of snntorch's, or None.

    Args:
        spike_grad: a closure or an object of `snntorch.surrogate`, or the `apply` of an autograd function of snntorch,
            which has its default parameters: the default of `snntorch.LeakyParallel` is one.
    """
    if isinstance(spike_grad, FunctionType):
        if spike_grad.__module__ != "snntorch.surrogate":
            return None
        name, _, rest = spike_grad.__qualname__.partition(".")
        parameters = dict(inspect.getclosurevars(spike_grad).nonlocals)
        if name == "custom_surrogate" and "func" in parameters:
            return surrogate.custom_surrogate(parameters["func"])
        return _made(name, parameters) if rest == "<locals>.inner" and name != "LSO" else None
    owner = getattr(spike_grad, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        if not owner.__module__.startswith("snntorch."):
            return None
        defaults = list(inspect.signature(owner.forward).parameters.values())[2:]
        return _tried(_made(owner.__name__, {each.name: each.default for each in defaults}), spike_grad)
    if type(spike_grad).__module__ != "snntorch.surrogate":
        return None
    values = {
        name: value for name, value in vars(spike_grad).items() if not name.startswith("_") and name != "training"
    }
    return _tried(_made(type(spike_grad).__name__, values), spike_grad)


def _made(name: str, parameters: dict[str, Any]) -> SurrogateGradient | None:
    found = _NAMES.get(name.lower().replace("_", "").removesuffix("surrogate"))
    try:
        return None if found is None else found(**parameters)
    except (TypeError, ValueError):  # other parameters, or values that a surrogate here refuses
        return None


def _tried(found: SurrogateGradient | None, spike_grad: SpikeGrad) -> SurrogateGradient | None:
    """`found`, if it has the spikes and the gradients of `spike_grad` at a few points."""
    if found is None or found.kind is None:  # the latter draws its gradient at random
        return found
    with torch.inference_mode(False), torch.enable_grad():
        at = torch.tensor([-2.0, -0.5, -0.01, 0.0, 0.01, 0.5, 1.5], device="cpu")
        results: list[Tensor] = []
        for each in (found, spike_grad):
            v = at.clone().requires_grad_()
            try:
                spikes = each(v)
                results += [spikes.detach(), *torch.autograd.grad(spikes.sum(), v)]
            except Exception:  # whatever a version of another package raises: it is not the equal then
                return None
    same = all(torch.allclose(ours, theirs, rtol=1e-4) for ours, theirs in zip(results[:2], results[2:], strict=True))
    return found if same else None
