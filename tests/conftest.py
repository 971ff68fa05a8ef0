from __future__ import annotations

from collections.abc import Iterator

import pytest

from .implementations import EMULATED, EVERY, FUSED, Implementation, emulation, unavailable


def available(implementation: Implementation) -> Iterator[Implementation]:
    reason = unavailable(implementation)
    if reason is not None:
        pytest.skip(reason)
    if implementation in EMULATED:
        with emulation():
            yield implementation
    else:
        yield implementation


@pytest.fixture(params=EVERY, ids=str)
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation of the layer in turn, nn.RNN's included."""
    yield from available(request.param)


@pytest.fixture(params=FUSED, ids=str)
def fused_implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each implementation that the operators have."""
    yield from available(request.param)


@pytest.fixture(params=EMULATED, ids=str)
def emulated_implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Each emulated CUDA scan."""
    yield from available(request.param)
