"""Odd shapes, drawn by Hypothesis, for every implementation against the specification."""

from __future__ import annotations

import pytest

from .implementations import Implementation
from .problems import DECAYS, DTYPES, draw
from .test_implementations import check_outputs

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


@hypothesis.given(
    sizes=st.tuples(st.integers(0, 140), st.integers(1, 4), st.integers(1, 20), st.integers(1, 70)),
    dtype=st.sampled_from(DTYPES),
    decay=st.sampled_from(DECAYS[:4]),
    biases=st.integers(0, 2),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_shape(implementation: Implementation, sizes, dtype, decay, biases, seed) -> None:
    problem = draw(*sizes, dtype=dtype, decay=decay, biases=biases, seed=seed)
    check_outputs(implementation, problem, dtype)
