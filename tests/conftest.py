from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

os.environ["LEAKYPAR_TUNING"] = "off"  # what this machine's user has measured is not the tests'

import leakypar
from leakypar import ops

from .implementations import CUDA, EMULATED, EVERY, FUSED, Implementation, emulation, unavailable

try:
    import hypothesis
except ImportError:
    hypothesis = None  # its tests are skipped by name

SEED = int(os.environ.get("LEAKYPAR_TEST_SEED", "0"))

if hypothesis is not None:
    # The same examples in every run: a failure that comes and goes is found by `make fuzz`, and by nobody else's tests.
    shared = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture]}
    hypothesis.settings.register_profile("repeatable", max_examples=15, derandomize=True, **shared)
    # Hypothesis repeats its examples wherever it sees a CI, unless it is told not to.
    hypothesis.settings.register_profile(
        "fuzz", derandomize=False, max_examples=100, database=None, print_blob=True, **shared
    )
    hypothesis.settings.load_profile("repeatable")


def pytest_configure() -> None:
    # Each worker of a parallel run has its share of the cores: threads that wait for a core spin, and slow the others.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_report_header() -> str:
    return f"torch {torch.__version__}; every test begins with torch's seed {SEED} (LEAKYPAR_TEST_SEED)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The skipped tests, counted by reason."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)  # (file, line, reason)
    if reasons:
        terminalreporter.section("skipped, by reason")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5}  {reason}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(SEED)


def global_state() -> dict[str, object]:
    """What a test may change for itself, and would change for every test after it."""
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "settings": {name: value for name, value in os.environ.items() if name.startswith("LEAKYPAR_")},
        "autotune": leakypar.autotune,
        "operators": ops._library,
    }


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Whatever the order of the tests, each finds what the first one found."""
    before = global_state()
    yield
    assert global_state() == before


@contextmanager
def strict_float32() -> Iterator[None]:
    """Products of float32 in float32: PyTorch allows RNNs on CUDA devices TF32 unless it is told otherwise."""
    rnn: Any = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision = before


def available(implementation: Implementation) -> Iterator[Implementation]:
    reason = unavailable(implementation)
    if reason is not None:
        pytest.skip(reason)
    if implementation in EMULATED:
        with emulation():
            yield implementation
    elif implementation in CUDA:
        with strict_float32():
            yield implementation
    else:
        yield implementation


def each(implementations: Sequence[Implementation]) -> list[Any]:
    return [
        pytest.param(each, id=str(each), marks=[pytest.mark.cuda] if each in CUDA else []) for each in implementations
    ]


@pytest.fixture(params=each(EVERY))
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation of the layer in turn, nn.RNN's included."""
    yield from available(request.param)


@pytest.fixture(params=each(FUSED))
def fused_implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation that the operators have."""
    yield from available(request.param)


@pytest.fixture(params=each(EMULATED))
def emulated_implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each emulated CUDA scan."""
    yield from available(request.param)
