"""The race: every implementation learns a task, in turns of a few steps, until each has reached the target accuracy.

All begin with the same weights and see the same batches in the same order. A turn is `round_steps` training steps; then
the next one makes the same steps, and who is first rotates, so that a noisy machine disturbs all alike. Training steps
alone are timed: not the drawing of a batch, and not the measurement of the accuracy after each round, on the held-out
set. Who has reached the target trains on until all have, so that the last accuracies are those of equally many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from operator import methodcaller

import torch
from torch import Tensor

from benchmarks.end_to_end.runner import NOT_REACHED, Runner
from benchmarks.end_to_end.tasks import Batches, Task
from examples.digits.network import Implementation


def race(
    task: Task,
    implementations: Sequence[Implementation],
    device: torch.device,
    *,
    seed: int,
    budget: float,
    report: Callable[[Sequence[Runner]], object] = lambda runners: None,
) -> list[Runner]:
    """Runs a task.

    Args:
        task: what is learned.
        implementations: who takes part.
        device: where.
        seed: of the weights.
        budget: seconds of training steps for each; who has used them up stops after that round.
        report: called after every round.

    Returns:
        The runners, in the order of `implementations`.
    """
    runners = [Runner(implementation) for implementation in implementations]

    def each(call: Callable[[Runner], object], first: int = 0) -> None:
        for runner in runners[first:] + runners[:first]:
            if runner.running:
                try:
                    call(runner)
                except RuntimeError as error:  # of this implementation, on this device; out of memory is one too
                    runner.fail(error)

    each(methodcaller("prepare", task, seed, device))
    ready = [runner for runner in runners if runner.running]
    each(methodcaller("begin", ready[0].weights if ready else {}))
    batches = _endless(task.learn)
    for round_ in range(task.most_steps // task.round_steps):
        if not any(runner.running and runner.reached_at is None for runner in runners):
            break
        drawn = list(islice(batches, task.round_steps))
        each(methodcaller("train", drawn), first=round_ % len(runners))
        each(methodcaller("judge", task.held_out, task.target))
        for runner in runners:
            if runner.running and sum(runner.seconds) > budget:
                runner.stop(f"its {budget:g} s were over")
        report(runners)
    for runner in runners:
        if runner.running and runner.status == NOT_REACHED:
            runner.stop("its steps were over")
    return runners


def _endless(learn: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in count():
        yield from learn.epoch(epoch)
