"""Spike trains like those of a cochlea that hears words: synthetic, and not solved by counting spikes.

A vowel is three formants, each a place among 700 channels. A word is three of five vowels in order; its formants glide
from the places of one vowel to those of the next. Each of the ten choices of three vowels is said in two orders, so
that each of the 20 words has an anagram: how often a channel spikes tells the vowels, and only when it does tells their
order. Each utterance has an onset, a tempo (uneven within the word), a speaker (all formants are scaled), a loudness of
each formant and spikes of its own; noise spikes come everywhere.

The language is fixed, and what is said in it depends on a seed. The sets are small on purpose: 800 utterances to learn
and 200 held out are 175 MB of spikes, drawn in some ten seconds. Of the held-out words, the nearest mean of counts
reads half; a network of 700 -> 128 -> 128 -> 20 reads four in five after some two hundred steps, which take two CPU
cores less than a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from torch import Tensor

STEPS, CHANNELS = 250, 700
VOWELS, FORMANTS = 5, 3
CLASSES = 20

WIDTH = 14.0  # of a formant, in channels: a standard deviation
PEAK_RATE = 0.3  # spikes a step at the centre of the loudest formant
NOISE_RATE = 0.01
DRAWN_TOGETHER = 40  # utterances, for the sake of memory


@dataclass(frozen=True)
class Utterances:
    """Spikes `[n, 250, 700]`, bool, and the words `[n]`, int64, 0 to 19."""

    spikes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def say(words: Tensor, generator: torch.Generator) -> Utterances:
    """Utters each of the words `[n]`, n > 0, once.

    Args:
        words: int64, 0 to 19.
        generator: on the CPU, so that every device is given the same utterances.
    """
    return Utterances(torch.cat([_spikes(chunk, generator) for chunk in torch.split(words, DRAWN_TOGETHER)]), words)


def learn_and_held_out(each: int, each_held_out: int, seed: int) -> tuple[Utterances, Utterances]:
    """Two sets in which every word is uttered equally often: `each` times to learn, `each_held_out` times held out."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.arange(CLASSES)
    return say(words.repeat(each), generator), say(words.repeat(each_held_out), generator)


def language() -> Tensor:
    """Where the formants of each word's vowels are, `[20, 3 vowels, 3 formants]`, in channels."""
    generator = torch.Generator().manual_seed(0)
    # Each formant has a band of its own, which the vowels share out evenly, each formant in an order of its own.
    places = torch.stack(
        [
            60 + 200 * formant + 40 * torch.randperm(VOWELS, generator=generator, dtype=torch.float32)
            for formant in range(FORMANTS)
        ],
        dim=1,
    )  # [vowels, formants]
    words = []
    for chosen in combinations(range(VOWELS), 3):
        orders = list(permutations(chosen))
        words += [orders[order] for order in torch.randperm(len(orders), generator=generator)[:2].tolist()]
    return places[torch.tensor(words)]


def _spikes(words: Tensor, generator: torch.Generator) -> Tensor:
    """Spikes `[n, 250, 700]`, bool, one utterance for each of the words `[n]`."""
    n = len(words)

    def uniform(least: float, most: float, *size: int) -> Tensor:
        return least + (most - least) * torch.rand(n, *size, generator=generator)

    # Progress through the word, 0 at its onset and 1 at its end; monotone, since the bend's slope is below 1.
    onset, duration = uniform(0.02, 0.14, 1), uniform(0.65, 0.85, 1)
    progress = (torch.arange(STEPS) / STEPS - onset) / duration
    inside = progress.clamp(0, 1)
    bend = uniform(-0.1, 0.1, 1)
    progress = inside + bend * torch.sin(2 * math.pi * inside)  # [n, T]

    # Between the middles of two vowels, at 1/6, 1/2 and 5/6, the formants glide.
    places = language()[words] * torch.exp(0.06 * torch.randn(n, 1, 1, generator=generator))
    first, second = ((3 * progress - middle).clamp(0, 1).unsqueeze(-1) for middle in (0.5, 1.5))
    glide = [weight * weight * (3 - 2 * weight) for weight in (first, second)]
    centres = (
        places[:, None, 0]
        + glide[0] * (places[:, None, 1] - places[:, None, 0])
        + glide[1] * (places[:, None, 2] - places[:, None, 1])
    )  # [n, T, formants]

    loudness = PEAK_RATE * uniform(0.4, 1.0, 1, FORMANTS) * (8 * inside * (1 - inside)).clamp(max=1).unsqueeze(-1)
    rate = torch.full((n, STEPS, CHANNELS), NOISE_RATE)
    channels = torch.arange(CHANNELS)
    for formant in range(FORMANTS):
        distance = (channels - centres[..., formant, None]) / WIDTH
        rate += loudness[..., formant, None] * torch.exp(-0.5 * distance * distance)
    return torch.rand(rate.shape, generator=generator) < rate


class SpikingSpeech:
    """A set of utterances on a device, as batches that depend on the seed alone; see `SpikingDigits`.

    Args:
        utterances: the set.
        batch_size: utterances in a batch; the last batch may have fewer.
        seed: of the order in each epoch.
        device: where the batches are.
    """

    def __init__(self, utterances: Utterances, batch_size: int, seed: int, device: torch.device) -> None:
        self._spikes = utterances.spikes.to(device)
        self._labels = utterances.labels.to(device)
        self._batch_size = batch_size
        self._seed = seed

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._labels) // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The set once, shuffled: spikes `[T, N, 700]` and labels `[N]`, batch by batch."""
        generator = torch.Generator().manual_seed(self._seed + epoch)
        return self._batched(torch.randperm(len(self._labels), generator=generator))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The set once, in its own order."""
        return self._batched(torch.arange(len(self._labels)))

    def _batched(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.split(order.to(self._labels.device), self._batch_size):
            yield self._spikes[chosen].transpose(0, 1).float(), self._labels[chosen]
