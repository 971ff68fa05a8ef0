"""How often the neurons of a network fire on a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .lengths import beyond
from .module import LeakyParallel

__all__ = ["FiringRates", "LayerRates", "firing_rates"]


class LayerRates(NamedTuple):
    """How often the neurons of one layer fire.

    Attributes:
        layer: its name in the network, `""` for the network itself.
        rate: spikes a neuron and step, the mean over the steps that are a sequence's own.
        silent: the share of its neurons that never fire.
        saturated: the share of its neurons that fire at every step.
    """

    layer: str
    rate: float
    silent: float
    saturated: float


class FiringRates(tuple[LayerRates, ...]):
    """The layers of a network, in the order in which they ran; `print` shows a table."""

    __slots__ = ()

    def __str__(self) -> str:
        """A line for each layer."""
        width = max([len("layer"), *(len(each.layer) for each in self)])
        lines = [f"{'layer':<{width}}    rate  silent  saturated"]
        lines += [f"{name:<{width}}  {rate:6.4f}  {silent:6.1%}  {full:9.1%}" for name, rate, silent, full in self]
        return "\n".join(lines)


def firing_rates(network: nn.Module, x: Any, **options: Any) -> FiringRates:
    """The firing rates of every `LeakyParallel` of a network on a batch, without dropout.

    Args:
        network: a layer, or what contains layers. It is called once, as `network(x, **options)`.
        x: its input.
        options: whatever else its call takes.

    Raises:
        TypeError: `network` is not a module.
        ValueError: it has no `LeakyParallel`, or calls none, or there is no step in `x`.

    Examples:
        >>> torch.manual_seed(0)
        >>> print(firing_rates(nn.Sequential(LeakyParallel(16, 32), LeakyParallel(32, 4)), torch.rand(10, 8, 16)))
        layer    rate  silent  saturated
        0      0.0000  100.0%       0.0%
        1      0.0000  100.0%       0.0%
    """
    fired: dict[str, Tensor] = {}
    steps: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            spikes = steps_of(output, options.get("lengths"))
            fired[name] = fired.get(name, 0) + spikes.count_nonzero(0)
            steps[name] = steps.get(name, 0) + len(spikes)

        return hook

    with evaluated(network), torch.no_grad():
        layers = layers_of(network)
        hooks = [layer.register_forward_hook(count(name), with_kwargs=True) for name, layer in layers.items()]
        try:
            network(x, **options)
        finally:
            for hook in hooks:
                hook.remove()
    if not fired:
        raise ValueError("network: its call runs no LeakyParallel")
    return FiringRates(
        LayerRates(
            name,
            counts.sum().item() / (steps[name] * counts.numel()),
            (counts == 0).float().mean().item(),
            (counts == steps[name]).float().mean().item(),
        )
        for name, counts in fired.items()
    )


def steps_of(value: Any, lengths: Tensor | None = None) -> Tensor:
    """A row for each step that is a sequence's own, `[rows, features]`.

    Args:
        value: `[T, N, features]`, `[T, features]`, or a PackedSequence; of a layer's outputs the first.
        lengths: `[N]` (`[]` for one sequence), or None.

    Raises:
        ValueError: there is none.
    """
    while isinstance(value, tuple) and not isinstance(value, PackedSequence):
        value = value[0]
    if isinstance(value, PackedSequence):
        rows = value.data
    elif lengths is not None:
        rows = value[~beyond(lengths, len(value)).squeeze(-1)]
    else:
        rows = value.reshape(-1, value.shape[-1])
    if len(rows) == 0:
        raise ValueError(f"x must have a step, got shape {list(value.shape)}")
    return rows


def layers_of(network: object) -> dict[str, LeakyParallel]:
    """Every `LeakyParallel` of a network by its name.

    Raises:
        TypeError: `network` is not a module.
        ValueError: it has none.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a module, got {type(network).__name__}")
    found = {name: each for name, each in network.named_modules() if isinstance(each, LeakyParallel)}
    if not found:
        raise ValueError(f"network must have a LeakyParallel, got {type(network).__name__} without one")
    return found


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Within it, every module is in evaluation, so that nothing drops out."""
    training = [each for each in network.modules() if each.training]
    network.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True
