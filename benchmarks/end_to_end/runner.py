"""One implementation that learns a task: its network, its training steps and their times."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.end_to_end.tasks import Batches, Task
from benchmarks.memory import peak_bytes
from examples.digits.network import Implementation
from examples.digits.training import scores, train_step

REACHED, NOT_REACHED, SKIPPED, FAILED = "reached", "not reached", "skipped", "failed"


class Runner:
    """A network in training.

    Args:
        implementation: makes the layers. One with a note, which says why it would not run as itself, is skipped.

    Attributes:
        implementation: as given.
        status: one of the four above.
        note: why it was skipped, failed or did not reach the target; empty while it runs.
        seconds: of every training step.
        accuracy: share of the held-out set read right at the last measurement; None before the first.
        reached_at: steps after which the target was first measured, or None.
        weights: those its seed gave it, once prepared.
        peak: bytes a training step holds at most beside its input, the parameters and the optimizer's state.
    """

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.status, self.note = NOT_REACHED, ""
        if implementation.note is not None:
            self.status, self.note = SKIPPED, implementation.note
        self.seconds: list[float] = []
        self.accuracy: float | None = None
        self.reached_at: int | None = None
        self.weights: dict[str, Tensor] = {}
        self.peak: int | None = None
        self._network: nn.Module
        self._optimizer: torch.optim.Optimizer

    @property
    def running(self) -> bool:
        return not self.note

    @property
    def seconds_to_target(self) -> float | None:
        """Of the training steps up to the target, or None."""
        return None if self.reached_at is None else sum(self.seconds[: self.reached_at])

    @property
    def median_step(self) -> float | None:
        """Seconds, or None where there was no step."""
        return median(self.seconds) if self.seconds else None

    def prepare(self, task: Task, seed: int, device: torch.device) -> None:
        """Builds the network, warms up, and measures a step's memory; `begin` takes back what those steps changed."""
        torch.manual_seed(seed)
        # Drawn on the CPU: a GPU draws other numbers from the same seed.
        self._network = task.network(self.implementation.layer).to(device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=task.learning_rate)
        self.weights = {name: value.clone() for name, value in self._network.state_dict().items()}
        x, labels = next(task.held_out.in_order())
        self._step(x, labels)
        self._optimizer.zero_grad()  # a profiler cannot count what is freed if it did not see it allocated
        self.peak = peak_bytes(lambda: self._step(x, labels), device)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=task.learning_rate)

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights that all begin with, by the names that all implementations share."""
        self._network.load_state_dict(weights)

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """A training step on each batch, timed."""
        for x, labels in batches:
            start = _now(x.device)
            self._step(x, labels)
            self.seconds.append(_now(x.device) - start)

    @torch.no_grad()
    def judge(self, held_out: Batches, target: float) -> None:
        """Measures the accuracy, which is not timed."""
        right = [scores(self._network(x)).argmax(1) == labels for x, labels in held_out.in_order()]
        self.accuracy = torch.cat(right).double().mean().item()
        if self.reached_at is None and self.accuracy >= target:
            self.status, self.reached_at = REACHED, len(self.seconds)

    def stop(self, reason: str) -> None:
        """Ends its training where the target was not reached in time; `reason` says what was used up."""
        self.note = f"{self.accuracy:.1%} after {len(self.seconds)} steps: {reason}"

    def fail(self, error: Exception) -> None:
        """Ends its training because of an error."""
        self.status, self.note = FAILED, str(error).splitlines()[0]

    def _step(self, x: Tensor, labels: Tensor) -> None:
        train_step(self._network, self._optimizer, x, labels)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
