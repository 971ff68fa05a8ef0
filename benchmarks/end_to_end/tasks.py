"""What is learned: the demo's digits, and synthetic speech."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.end_to_end.speech import CHANNELS, CLASSES, SpikingSpeech, learn_and_held_out
from examples.digits.data import TEST_SHARE, SpikingDigits, load_digits, stratified_split
from examples.digits.network import Network

MakeLayer = Callable[..., nn.Module]

HIDDEN = 128
NEURONS: dict[str, Any] = {"beta": 0.8, "learn_beta": True, "threshold": 1.0}


class Batches(Protocol):
    """A set in batches: spikes `[T, N, C]` and labels `[N]`."""

    @property
    def batches(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The set once, shuffled."""

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The set once, always the same."""


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        name: what the command line calls it.
        network: makes the network from what makes a layer; from `[T, N, C]` to spikes `[T, N, classes]`.
        learn: the training set.
        held_out: the set that accuracy is measured on.
        target: the accuracy to reach.
        learning_rate: Adam's, constant, so that no schedule has to know how long it will take.
        round_steps: training steps between two measurements of the accuracy.
        most_steps: after which nobody goes on.
    """

    name: str
    network: Callable[[MakeLayer], nn.Module]
    learn: Batches
    held_out: Batches
    target: float
    learning_rate: float
    round_steps: int
    most_steps: int


def digits(seed: int, device: torch.device) -> Task:
    """784 -> 128 -> 10 on 4,000 digits, rate-coded over 25 steps, in batches of 128; 1,000 are held out."""
    everything = load_digits()
    learn, held_out = stratified_split(everything.labels, TEST_SHARE, seed)
    return Task(
        name="digits",
        network=Network,
        learn=SpikingDigits(everything.take(learn), 128, seed, device),
        held_out=SpikingDigits(everything.take(held_out), 128, seed, device),
        target=0.92,
        learning_rate=2e-3,
        round_steps=16,
        most_steps=640,
    )


def speech(seed: int, device: torch.device) -> Task:
    """700 -> 128 -> 128 -> 20 on 800 utterances of 250 steps, in batches of 32; 200 are held out."""
    learn, held_out = learn_and_held_out(40, 10, seed)
    return Task(
        name="speech",
        network=speech_network,
        learn=SpikingSpeech(learn, 32, seed, device),
        held_out=SpikingSpeech(held_out, 32, seed, device),
        target=0.8,
        learning_rate=5e-3,
        round_steps=16,
        most_steps=640,
    )


def speech_network(layer: MakeLayer) -> nn.Module:
    """700 -> 128 -> 128 -> 20, every layer spiking, with a longer memory than the demo's."""
    sizes = (CHANNELS, HIDDEN, HIDDEN, CLASSES)
    return nn.Sequential(*(layer(C, H, **NEURONS) for C, H in pairwise(sizes)))


TASKS: dict[str, Callable[[int, torch.device], Task]] = {"digits": digits, "speech": speech}
