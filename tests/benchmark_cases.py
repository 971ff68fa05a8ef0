"""What the tests of the benchmark suite share: a small case, and rows that were never measured."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks import results
from benchmarks.bounds import Ceilings
from benchmarks.environment import describe
from benchmarks.implementations import Implementation, all_implementations
from benchmarks.results import Row
from benchmarks.runner import Case, Settings
from leakypar.measuring import Shape

CPU = torch.device("cpu")
TINY = Shape("tiny", 40, 4, 24, 16)
SPEED = Ceilings(1e10, 1e10)


def settings(*implementations: Implementation, **options: Any) -> Settings:
    chosen: dict[str, Any] = {
        "device": CPU,
        "shapes": [TINY],
        "dtypes": ["float32"],
        "passes": ["training"],
        "inputs": ["spikes"],
        "threads": [torch.get_num_threads()],
        "implementations": implementations,
        "rounds": 3,
        "peak": False,
    }
    return Settings(**(chosen | options))


def run_case(
    *implementations: Implementation,
    pass_: str = "training",
    dtype: str = "float32",
    kind: str = "spikes",
    deadline: float = math.inf,
    **options: Any,
) -> list[Row]:
    chosen, threads = settings(*implementations, **options), torch.get_num_threads()
    return Case(chosen, describe(CPU), TINY, dtype, kind, pass_, threads, SPEED, deadline).run()


def all_for_the_cpu() -> list[Implementation]:
    return [implementation for implementation in all_implementations() if implementation.applies(CPU)]


def make_row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        **vars(describe(CPU)),
        "threads": 2,
        "tf32": "n/a",
        "dtype": "float32",
        "shape": "speech",
        "T": 250,
        "N": 256,
        "C": 700,
        "H": 512,
        "pass": "forward",
        "input": "spikes",
        "spike_rate": 0.2,
        "implementation": "leakypar fused",
        "plan": "auto",
        "backend": "fused",
        "function": "same",
        "status": results.OK,
        "rounds": 30,
        "median_us": 1234.0,
        "spread_us": 5.5,
        "speedup_over_rnn": 3.25,
        "time_over_linear": 1.5,
        "time_over_linear_spread": 0.125,
        "share_of_bound": 0.8,
        "note": "",
    }
    rival = {} if changes.get("implementation", "leakypar fused").startswith("leakypar") else {"backend": ""}
    return values | rival | {name.rstrip("_"): value for name, value in changes.items()}
