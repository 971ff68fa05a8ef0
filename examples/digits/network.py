"""The network, and the implementations of its layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import leakypar

from .data import CLASSES, PIXELS

HIDDEN = 128
THRESHOLD = 1.0
NEURONS: dict[str, Any] = {"beta": 0.5, "learn_beta": True, "threshold": THRESHOLD}


class Network(nn.Module):
    """784 -> 128 -> 10, both layers spiking.

    Args:
        layer: makes a layer from its input size, its number of neurons, and the options that every implementation has.
    """

    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.hidden = layer(PIXELS, HIDDEN, **NEURONS)
        self.output = layer(HIDDEN, CLASSES, **NEURONS)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes `[T, N, 784]` to spikes `[T, N, 10]`."""
        spikes: Tensor = self.output(self.hidden(x))
        return spikes


@dataclass(frozen=True)
class Implementation:
    """One implementation of the layer, on one device.

    Attributes:
        name: what the command line and the table call it.
        backend: what computes it, in words.
        layer: makes a layer.
        note: what a reader of the table should know, or None.
    """

    name: str
    backend: str
    layer: Callable[..., nn.Module]
    note: str | None = None


def _recurrent(device: torch.device) -> str:
    return "nn.RNN, cuDNN" if device.type == "cuda" else "nn.RNN"


def _leakypar(device: torch.device) -> Implementation:
    if leakypar.ops.is_available(device.type):
        layer = partial(leakypar.LeakyParallel, backend="fused")
        return Implementation("leakypar", f"fused {device.type.upper()} kernels", layer)
    # Asked for by name, since "auto" would fall back to it with a warning in the midst of the progress bars.
    layer = partial(leakypar.LeakyParallel, backend="rnn")
    return Implementation("leakypar", _recurrent(device), layer, note=leakypar.ops.unavailable_reason(device.type))


def _rnn(device: torch.device) -> Implementation:
    return Implementation("nn.RNN", _recurrent(device), partial(leakypar.LeakyParallel, backend="rnn"))


def _snntorch(device: torch.device) -> Implementation:
    import snntorch

    return Implementation("snntorch", _recurrent(device), snntorch.LeakyParallel)


_MAKERS = {"leakypar": _leakypar, "nn.RNN": _rnn, "snntorch": _snntorch}

IMPLEMENTATIONS = tuple(_MAKERS)


def implementation(name: str, device: torch.device) -> Implementation:
    """An implementation by name, one of `IMPLEMENTATIONS`."""
    return _MAKERS[name](device)


def unavailable(name: str) -> str | None:
    """Why an implementation cannot run here, or None where it can."""
    if name == "snntorch" and find_spec("snntorch") is None:
        return "snntorch is left out, since it is not installed: pip install snntorch"
    return None


def build(chosen: Implementation, seed: int, device: torch.device) -> Network:
    """A network on a device; its weights depend on the seed alone.

    They are drawn on the CPU, because a GPU draws other numbers from the same seed, and because snntorch masks its
    recurrent weights with a tensor of the CPU.
    """
    torch.manual_seed(seed)
    return Network(chosen.layer).to(device)


def fingerprint(network: Network) -> str:
    """A hash of every weight that the layers read: equal for networks that compute the same."""
    state = network.state_dict()
    digest = hashlib.sha256()
    for layer in ("hidden", "output"):
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            weight = state[f"{layer}.rnn.{name}"]
            read = weight.diagonal() if name == "weight_hh_l0" else weight
            digest.update(read.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
