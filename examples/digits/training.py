"""Training one implementation: the same seed and settings, the same data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from .data import Digits, SpikingDigits
from .memory import PeakMemory
from .network import Network, build, fingerprint, implementation

LEARNING_RATE = 5e-3
CONTRAST = 4.0


@dataclass(frozen=True)
class Settings:
    """What the implementations have in common.

    Attributes:
        epochs: passes over the training set.
        batch_size: digits per step.
        seed: of weights, order and spikes.
        device: as torch names it.
    """

    epochs: int
    batch_size: int
    seed: int
    device: str


@dataclass(frozen=True)
class Result:
    """What the training of one implementation gave.

    Attributes:
        name: the implementation.
        backend: what computed it.
        note: see `Implementation`.
        accuracy: share of the test digits that it reads.
        losses: `[steps]`, the loss of every training step.
        epoch_seconds: time of every epoch's training steps, without the encoding of the digits.
        peak_memory: bytes, or None where the system does not tell.
        memory_kind: what `peak_memory` is.
        initial: fingerprint of the weights before training.
        state: the trained network's `state_dict`.
    """

    name: str
    backend: str
    note: str | None
    accuracy: float
    losses: NDArray[np.float64]
    epoch_seconds: tuple[float, ...]
    peak_memory: int | None
    memory_kind: str
    initial: str
    state: dict[str, NDArray[np.float32]]


def scores(spikes: Tensor) -> Tensor:
    """Firing rates `[N, 10]` of the output spikes `[T, N, 10]`, scaled to serve as logits.

    Rates end at 1. The scale sets how far apart the classes can be driven: without it the loss could not approach zero,
    and with one as large as the number of steps (spike counts) the network fits its few digits too closely.
    """
    return CONTRAST * spikes.mean(0)


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> tuple[float, int]:
    """One step of the optimizer on one batch. Returns the loss, and how many digits were read right before the step."""
    logits = scores(network(x))
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


@torch.no_grad()
def predict(network: Network, digits: SpikingDigits) -> Tensor:
    """The classes `[n]`, on the CPU, that the network reads in a set."""
    return torch.cat([scores(network(x)).argmax(1).cpu() for x, _ in digits.in_order()])


class _Stopwatch:
    """Adds up the seconds of stretches of work, which on a GPU are finished only when the device is."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds += self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def train(name: str, settings: Settings, train_set: Digits, test_set: Digits) -> Result:
    """Trains and tests one implementation, with a progress bar per epoch."""
    device = torch.device(settings.device)
    chosen = implementation(name, device)
    network = build(chosen, settings.seed, device)
    initial = fingerprint(network)
    digits = SpikingDigits(train_set, settings.batch_size, settings.seed, device)
    memory = PeakMemory(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=settings.epochs * digits.batches)

    losses, epoch_seconds = [], []
    for epoch in range(settings.epochs):
        watch = _Stopwatch(device)
        right = seen = 0
        title = f"{name:>8}  epoch {epoch + 1}/{settings.epochs}"
        with tqdm(digits.epoch(epoch), title, digits.batches, unit="batch", dynamic_ncols=True) as progress:
            for x, labels in progress:
                with watch.running():
                    loss, correct = train_step(network, optimizer, x, labels)
                schedule.step()
                losses.append(loss)
                right, seen = right + correct, seen + len(labels)
                progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{right / seen:.1%}", refresh=False)
        epoch_seconds.append(watch.seconds)

    predicted = predict(network, SpikingDigits(test_set, settings.batch_size, settings.seed, device))
    return Result(
        name=name,
        backend=chosen.backend,
        note=chosen.note,
        accuracy=float(np.mean(predicted.numpy() == test_set.labels)),
        losses=np.array(losses),
        epoch_seconds=tuple(epoch_seconds),
        peak_memory=memory.peak(),
        memory_kind=memory.kind,
        initial=initial,
        state={key: value.cpu().numpy() for key, value in network.state_dict().items()},
    )


def train_apart(name: str, settings: Settings, train_set: Digits, test_set: Digits) -> Result:
    """`train` in a process of its own, so that its memory is its own and no implementation warms another's caches."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(train, name, settings, train_set, test_set).result()
