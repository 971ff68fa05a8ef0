"""Training the implementations in turns, batch by batch: the same seed and settings, the same data.

On a machine that does other things too, one after the other would compare the machine's moments. In turns, what
disturbs one disturbs all, and the ratio of two times of the same batch says most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

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
        step_seconds: `[steps]`, time of every training step, without the encoding of the digits.
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
    step_seconds: NDArray[np.float64]
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


class Training:
    """One implementation in training, a step at a time.

    Args:
        name: the implementation.
        settings: what all have in common.
        train_set: digits to learn.
        test_set: digits to be tested on.
    """

    def __init__(self, name: str, settings: Settings, train_set: Digits, test_set: Digits) -> None:
        self._device = torch.device(settings.device)
        self._chosen = implementation(name, self._device)
        self._network = build(self._chosen, settings.seed, self._device)
        self._initial = fingerprint(self._network)
        self._labels = test_set.labels
        self._test = SpikingDigits(test_set, settings.batch_size, settings.seed, self._device)
        digits = SpikingDigits(train_set, settings.batch_size, settings.seed, self._device)
        self._memory = PeakMemory(self._device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=LEARNING_RATE)
        self.steps = settings.epochs * digits.batches
        self._schedule = OneCycleLR(self._optimizer, LEARNING_RATE, total_steps=self.steps)
        self._batches = (batch for epoch in range(settings.epochs) for batch in digits.epoch(epoch))
        self._losses: list[float] = []
        self._seconds: list[float] = []

    def step(self) -> tuple[float, float]:
        """One training step. Returns the loss, and the share of its digits that were read right before it."""
        x, labels = next(self._batches)
        began = self._now()
        loss, right = train_step(self._network, self._optimizer, x, labels)
        self._seconds.append(self._now() - began)
        self._schedule.step()
        self._losses.append(loss)
        return loss, right / len(labels)

    def _now(self) -> float:
        if self._device.type == "cuda":  # a step is over when the device is done, not when it has its orders
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def result(self) -> Result:
        """Tests the network, and tells all."""
        predicted = predict(self._network, self._test)
        return Result(
            name=self._chosen.name,
            backend=self._chosen.backend,
            note=self._chosen.note,
            accuracy=float(np.mean(predicted.numpy() == self._labels)),
            losses=np.array(self._losses),
            step_seconds=np.array(self._seconds),
            peak_memory=self._memory.peak(),
            memory_kind=self._memory.kind,
            initial=self._initial,
            state={key: value.cpu().numpy() for key, value in self._network.state_dict().items()},
        )


# The training of this process: each implementation has a process of its own, so that its memory is its own.
_here: list[Training] = []


def _begin(*arguments: Any) -> int:
    _here[:] = [Training(*arguments)]
    return _here[0].steps


def _step() -> tuple[float, float]:
    return _here[0].step()


def _result() -> Result:
    return _here[0].result()


def train_in_turns(names: Sequence[str], settings: Settings, train_set: Digits, test_set: Digits) -> list[Result]:
    """Trains and tests implementations, each in a process of its own, with one progress bar for all.

    One step of each in turn; who begins changes from turn to turn.
    """
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")))
            for name in names
        }
        # One at a time: a process that starts would disturb the measurement of another's memory.
        (steps,) = {
            process.submit(_begin, name, settings, train_set, test_set).result() for name, process in processes.items()
        }
        with tqdm(range(steps), "training in turns", unit="batch", dynamic_ncols=True) as progress:
            for step in progress:
                first = step % len(names)
                for name in [*names[first:], *names[:first]]:
                    loss, right = processes[name].submit(_step).result()
                progress.set_postfix(
                    epoch=f"{1 + step * settings.epochs // steps}/{settings.epochs}",
                    loss=f"{loss:.3f}",
                    right=f"{right:.0%}",
                    refresh=False,
                )
        return [processes[name].submit(_result).result() for name in names]
