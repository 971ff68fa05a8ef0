"""What one digit does in a trained network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Digits, SpikingDigits
from .network import build, implementation
from .training import predict

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Trace:
    """One digit, and every layer's answer to it.

    Attributes:
        image: `[28, 28]`, uint8.
        label: what it shows.
        prediction: what the network reads.
        pixels: the input spikes, `[T, 784]`.
        hidden: spikes, `[T, 128]`.
        membrane: of the hidden neurons, `[T, 128]`.
        threshold: of the hidden neurons.
        output: spikes, `[T, 10]`.
        rates: spikes an element of the pixels, the hidden neurons and the output, over a hundred digits.
    """

    image: NDArray[np.uint8]
    label: int
    prediction: int
    pixels: Array
    hidden: Array
    membrane: Array
    threshold: float
    output: Array
    rates: tuple[float, float, float]


@torch.no_grad()
def trace(state: dict[str, Array], test_set: Digits, seed: int) -> Trace:
    """Shows a network the first test digit that it reads right (the first of all, where it reads none).

    Args:
        state: `state_dict` of a network of any implementation: leakypar loads them all.
        test_set: the digits.
        seed: of their spikes.
    """
    device = torch.device("cpu")
    network = build(implementation("leakypar", device), seed, device)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})

    candidates = test_set.take(np.arange(min(100, len(test_set))))
    predicted = predict(network, SpikingDigits(candidates, len(candidates), seed, device)).numpy()
    chosen = int(np.argmax(predicted == candidates.labels))

    ((x, _),) = SpikingDigits(candidates, len(candidates), seed, device).in_order()
    hidden, membrane = network.hidden(x, return_membrane=True)
    output = network.output(hidden)
    return Trace(
        image=candidates.images[chosen].reshape(28, 28),
        label=int(candidates.labels[chosen]),
        prediction=int(predicted[chosen]),
        pixels=x[:, chosen].numpy(),
        hidden=hidden[:, chosen].numpy(),
        membrane=membrane[:, chosen].numpy(),
        threshold=float(state["hidden.threshold"]),
        output=output[:, chosen].numpy(),
        rates=(x.mean().item(), hidden.mean().item(), output.mean().item()),
    )
