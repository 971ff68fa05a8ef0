from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from .implementations import CUDA, EMULATED, EVERY, FUSED, Implementation, emulation, unavailable


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
