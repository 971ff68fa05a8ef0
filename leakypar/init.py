"""Initial weights from data: networks whose neurons fire before they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .module import LeakyParallel
from .rates import evaluated, layers_of, steps_of
from .setting_checks import is_real

__all__ = ["firing_rate_"]

Network = TypeVar("Network", bound=nn.Module)

WITHIN = 0.1  # of the rate, what is promised
CLOSE = 0.01  # of the rate, where the search ends
WIDENINGS, BISECTIONS = 20, 30


def firing_rate_(network: Network, x: Any, rate: float = 0.1, **options: Any) -> Network:
    r"""Scales the weights of every layer so that it fires at a rate on a batch, in place, one layer after the other.

    Each layer's input weights are divided by the root mean square of its input, so that the scale of the data does not
    matter beside the biases; then weights and biases are multiplied by one number :math:`s`. Decays and thresholds
    stay. A membrane of bounds :math:`(0, \infty)` that begins at 0 is then :math:`s` times what it was, so the rate
    grows with :math:`s`, which is found by bisection on the layer itself, for what the layers before it give once they
    are scaled. Nothing is drawn at random, and dropout is off.

    Source: the procedure is that of Mishkin and Matas (2016), All you need is a good init, where each layer's output
    gets a variance of one.

    Args:
        network: a layer, or what contains layers. It is called once, as `network(x, **options)`; a layer that it calls
            several times is scaled at the first.
        x: its input: a batch of the data that it will learn.
        rate: spikes a neuron and step, the mean over the layer, strictly between 0 and 1. It is reached within 10% on
            `x`, most often within 1%.
        options: whatever else its call takes.

    Returns:
        `network`.

    Raises:
        TypeError: an argument is not of a type above.
        ValueError: `rate` is out of range, the network has no `LeakyParallel`, or calls one of them never; or a layer
            cannot reach the rate, for the reason that is told. Then no weight is changed.
    """
    if not is_real(rate):
        raise TypeError(f"rate must be a number between 0 and 1, got {type(rate).__name__}")
    if not 0 < float(rate) < 1:
        raise ValueError(f"rate must be strictly between 0 and 1, got {rate}")
    layers = layers_of(network)
    before: dict[str, _Scaled] = {}

    def scale(name: str) -> Callable[..., None]:
        def hook(layer: LeakyParallel, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if name not in before:
                before[name] = _Scaled(name, layer, *arguments, **options)
                before[name].reach(float(rate))

        return hook

    with evaluated(network), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(scale(name), with_kwargs=True) for name, layer in layers.items()]
        try:
            network(x, **options)
            if never := [name for name in layers if name not in before]:
                raise ValueError(f"network: its call does not run {', '.join(map(repr, never))}")
        except BaseException:  # an interrupt too leaves the weights as they were
            for each in before.values():
                each.restore()
            raise
        finally:
            for hook in hooks:
                hook.remove()
    return network


class _Scaled:
    """A layer whose weights and biases are multiples of what they were, and what it is called with."""

    def __init__(self, name: str, layer: LeakyParallel, x: Any, **options: Any) -> None:
        self.layer, self.x, self.options = layer, x, options
        self.title = f"layer {name!r}" if name else "the layer"
        names = [each for each in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0") if getattr(layer.rnn, each) is not None]
        for each in names:
            if each not in layer.rnn._parameters and not parametrize.is_parametrized(layer.rnn, each):
                raise ValueError(f"firing_rate_: {each} of {self.title} is pruned or normalised: call it before")
        self.values = {each: getattr(layer.rnn, each).detach().clone() for each in names}

        self.size = self.steps(x).double().square().mean().sqrt().item() or 1.0

    def steps(self, value: Any) -> Tensor:
        return steps_of(value, self.options.get("lengths"))

    def restore(self) -> None:
        for name, value in self.values.items():
            self._set(name, value)

    def by(self, s: float) -> None:
        for name, value in self.values.items():
            self._set(name, value * (s / self.size if name == "weight_ih_l0" else s))

    def _set(self, name: str, value: Tensor) -> None:
        if name in self.layer.rnn._parameters:
            getattr(self.layer.rnn, name).copy_(value)
        else:
            setattr(self.layer.rnn, name, value)

    def run(self, **returned: bool) -> Any:
        return self.layer.forward(self.x, **self.options | {"return_membrane": False, "return_state": False} | returned)

    def reach(self, rate: float) -> None:
        """Scales to the rate."""
        self.by(1.0)
        membrane = self.steps(self.run(return_membrane=True)[1])
        if not membrane.isfinite().all():
            raise ValueError(f"firing_rate_: the membrane of {self.title} is not finite: scale the input down")
        found: dict[float, float] = {}

        def fires(s: float) -> float:
            if s not in found:
                self.by(s)
                spikes = self.steps(self.run())
                found[s] = spikes.count_nonzero().item() / spikes.numel()
            return found[s]

        def error(s: float) -> float:
            return abs(found[s] - rate)

        low = high = self._guess(membrane, rate)
        if abs(fires(low) - rate) > CLOSE * rate:
            for _ in range(WIDENINGS):
                low = low / 4 if fires(low) > rate else low
                high = high * 4 if fires(high) < rate else high
            for _ in range(BISECTIONS):
                s = math.sqrt(low) * math.sqrt(high)
                low, high = (s, high) if fires(s) < rate else (low, s)
                if error(s) <= CLOSE * rate or high - low <= 1e-6 * high:  # which float32 hardly tells apart
                    break
        best = min(found, key=error)
        self.by(best)
        if error(best) > WITHIN * rate:
            raise ValueError(
                f"firing_rate_: {self.title} cannot fire at a rate of {rate:g} on this batch, the nearest is "
                f"{found[best]:.4g}: {self._reason(membrane, list(found.values()), rate)}"
            )

    def _guess(self, membrane: Tensor, rate: float) -> float:
        """The scale at which a membrane `[rows, H]` that grows with it would be above the threshold at this rate."""
        shares = (membrane.double() / self.layer.threshold.double()).reshape(-1)
        shares = shares[shares.isfinite()]
        n = len(shares)
        if n < 2:
            return 1.0
        above = max(1, min(n - 1, round(rate * n)))
        between = sum(shares.kthvalue(n - each).values.item() for each in (above - 1, above)) / 2
        return 1 / between if between > 1e-200 else 1.0

    def _reason(self, membrane: Tensor, rates: list[float], rate: float) -> str:
        upper = self.layer.membrane_bounds[1]
        if max(rates) < rate and upper <= self.layer.threshold.max().item():
            return f"its membrane_bounds end at {upper:g}, which is not above every threshold"
        if max(rates) < rate:
            return f"its membrane is above 0 at {(membrane > 0).double().mean().item():.4g} of all steps, at any scale"
        if min(rates) > rate:
            return "some of its membranes are above their thresholds without any weights"
        below = max(each for each in rates if each < rate)
        above = min(each for each in rates if each > rate)
        return f"too many of its membranes are equal, so that the rate jumps from {below:.4g} to {above:.4g}"
