"""``python -m benchmarks.compact_decay``: a training step with Adam, of a learned decay `[H]` beside one in `[H, H]`.

Steps in turns; the median of the ratio of neighbours, and the bytes that the decay, its gradient and its moments hold.
"""

from __future__ import annotations

from typing import Any

import torch

import leakypar
from leakypar.benchmark import figures
from leakypar.measuring import Contestant, HostClock, race

T, N, C, H = 25, 16, 256, 4096
TURNS = 15
DECAYS = {"decay_l0": True, "weight_hh_l0": False}


def contestant(layer: leakypar.LeakyParallel, optimizer: torch.optim.Adam) -> Contestant:
    """A training step."""
    x = torch.rand(T, N, C)

    def step(_: int) -> None:
        layer(x).sum().backward()
        optimizer.step()

    return Contestant(step, optimizer.zero_grad)


def main() -> None:
    """Prints both."""
    options: dict[str, Any] = {"beta": 0.9, "learn_beta": True, "backend": "fused"}
    layers = {name: leakypar.LeakyParallel(C, H, **options, compact_decay=each) for name, each in DECAYS.items()}
    optimizers = {name: torch.optim.Adam(layer.parameters()) for name, layer in layers.items()}
    contestants = {name: contestant(layer, optimizers[name]) for name, layer in layers.items()}
    readings, _ = race(contestants, HostClock(), 1, seconds=600, fewest=TURNS, most=TURNS)
    print(f"({T}, {N}, {C}, {H}), float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, layer in layers.items():
        decay = getattr(layer.rnn, name)
        held = (decay, decay.grad, *(optimizers[name].state[decay][each] for each in ("exp_avg", "exp_avg_sq")))
        print(f"{name}, its gradient and Adam's moments: {sum(each.nbytes for each in held):,} bytes")
    found = figures(readings, "decay_l0", "", "weight_hh_l0")
    print(
        "time of a training step over the matrix's: {time_over_linear:.2f} ± {time_over_linear_spread:.2f}".format_map(
            found
        )
    )


if __name__ == "__main__":
    main()
