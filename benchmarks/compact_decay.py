"""``python -m benchmarks.compact_decay``: a training step with Adam, of a learned decay `[H]` beside one in `[H, H]`.

Steps in turns; the median of the ratio of neighbours, and the bytes that the decay, its gradient and its moments hold.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import nn

import leakypar

T, N, C, H = 25, 16, 256, 4096
TURNS = 15


def stepper(compact: bool) -> tuple[Callable[[], None], Callable[[], int]]:
    """A training step, and what then counts the bytes of its decay."""
    layer = leakypar.LeakyParallel(C, H, beta=0.9, learn_beta=True, compact_decay=compact, backend="fused")
    optimizer = torch.optim.Adam(layer.parameters())
    x = torch.rand(T, N, C)

    def step() -> None:
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()

    def held() -> int:
        decay: nn.Parameter = layer.rnn.decay_l0 if compact else layer.rnn.weight_hh_l0
        moments = [optimizer.state[decay][name] for name in ("exp_avg", "exp_avg_sq")]
        return sum(each.nbytes for each in (decay, decay.grad, *moments) if each is not None)

    return step, held


def main() -> None:
    """Prints both."""
    steps, counts = zip(*(stepper(compact) for compact in (True, False)), strict=True)
    for step in steps:
        step()
    ratios = []
    for _ in range(TURNS):
        seconds = []
        for step in steps:
            start = perf_counter()
            step()
            seconds.append(perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    print(f"({T}, {N}, {C}, {H}), float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"bytes of the decay, its gradient and Adam's moments: {counts[0]():,} against {counts[1]():,}")
    print(f"time of a training step over the matrix's: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
