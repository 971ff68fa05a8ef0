"""The maps of `csrc/math/clamp_affine.h`: pieces of any lengths, composed in any association, give what the steps give.

The bound is the header's own: the result must be one that the steps, in extended precision, give for some carry and
inputs within a relative `(4 T + 16) e` of the given ones, e the unit roundoff. Where the membrane sits on an unstable
fixed point that allows much; where relu decides it allows one number.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

RECTIFIED = (0.0, np.inf)
Array = np.ndarray[Any, np.dtype[Any]]
Exact = np.longdouble


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("algebra") / "maps.so"
    source = ROOT / "tests" / "algebra" / "maps.cpp"
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-fsanitize=undefined"]
    flags += ["-fno-sanitize-recover", f"-I{ROOT / 'csrc'}"]
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def composed(
    maps: ctypes.CDLL,
    decay: Any,
    inputs: Array,
    lengths: Array,
    merges: Array,
    carries: Array,
    active: Array | None,
    bounds: tuple[float, float] = RECTIFIED,
) -> Array:
    """What the one map that is left gives for each carry; with `active`, the backward's maps."""
    dtype = inputs.dtype
    real = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    results = np.empty_like(carries)
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
    function = getattr(
        maps, f"{'forward' if active is None else 'backward'}_{'float' if real is ctypes.c_float else 'double'}"
    )
    function(
        real(decay),
        *([ctypes.c_double(np.nan if np.isinf(bound) else bound) for bound in bounds] if active is None else []),
        pointer(inputs),
        *([] if active is None else [pointer(active)]),
        pointer(lengths),
        ctypes.c_int64(len(lengths)),
        pointer(merges),
        pointer(carries),
        ctypes.c_int64(len(carries)),
        pointer(results),
    )
    return results


def steps(decay: Any, inputs: Array, carries: Array, bounds: tuple[float, float] = RECTIFIED) -> Array:
    """The recurrence one step at a time, in the precision of its arguments, as the reference has it."""
    h = carries
    with np.errstate(all="ignore"):
        for u in inputs:
            h = decay * h + u
            lower, upper = np.asarray(bounds, dtype=u.dtype)
            h = np.where(h <= lower, lower, h)
            h = np.where(h >= upper, upper, h)
    return h


def enclosure(
    decay: Any, inputs: Array, carries: Array, bounds: tuple[float, float] = RECTIFIED
) -> tuple[Array, Array, Array]:
    """The least and the largest result of perturbed inputs and carries, and where a step might overflow on the way."""
    info = np.finfo(inputs.dtype)
    unit, least, largest = Exact(info.eps) / 2, Exact(info.smallest_subnormal), Exact(info.max)
    w, T = np.asarray(decay).astype(Exact), len(inputs)
    # Beyond the reciprocal of the least normal number, a decay's own is subnormal.
    off = (4 * T + 16) * unit + np.where(abs(w) > 1 / Exact(info.tiny), Exact(info.eps) * 2, 0)
    beyond = Exact(info.max) ** 2  # what would be larger stays here, so that no infinities meet
    lower, upper = np.asarray(bounds, dtype=inputs.dtype).astype(Exact)
    h = carries.astype(Exact)
    low, high = h - off * abs(h) - least, h + off * abs(h) + least
    overflows = np.zeros(h.shape, dtype=bool)
    with np.errstate(all="ignore"):
        for u in inputs.astype(Exact):
            ends = np.minimum(w * low, w * high), np.maximum(w * low, w * high)
            slack = off * abs(u) + least * (1 + abs(w))
            low = np.clip(ends[0] - 2 * unit * abs(ends[0]) + u - slack, lower, upper)
            high = np.clip(ends[1] + 2 * unit * abs(ends[1]) + u + slack, lower, upper)
            low, high = np.clip(low, -beyond, beyond), np.clip(high, -beyond, beyond)
            overflows |= np.maximum(high, -low) >= largest * (1 - 4 * unit)
    return low, high, overflows


OTHER_BOUNDS = [(-np.inf, np.inf), (-0.75, 1.5), (-np.inf, 2.0), (0.25, np.inf), (-3.0, -0.5)]
DECAYS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    0.95,
    -0.95,
    0.999,
    1.0001,
    1.02,
    1.1,
    -1.1,
    1.5,
    4.1,
    -4.1,
    300.0,
    2.0**70,
    -(2.0**100),
]
SIZES = ["normal", "inhibitory", "bursts", "huge", "tiny", "silent", "still"]


def decay_values(dtype: Any) -> st.SearchStrategy[Any]:
    info = np.finfo(dtype)
    edges = [info.max, -info.max, info.tiny, info.smallest_subnormal, 1 + info.eps, 1 - info.eps, -1 - info.eps]
    width = 32 if dtype == np.float32 else 64
    anything = st.floats(width=width, allow_nan=False, allow_infinity=False)
    near_one = st.floats(-1.25, 1.25, width=width)
    return st.one_of(st.sampled_from([*DECAYS, *map(float, edges)]), near_one, anything).map(dtype)


def cuts(rng: np.random.Generator, T: int, pieces: int) -> tuple[Array, Array]:
    """Lengths of the pieces of T steps, and an order in which to join them."""
    at = np.sort(rng.choice(np.arange(1, T), min(pieces, T) - 1, replace=False)) if T > 1 else np.empty(0)
    lengths = np.diff(np.concatenate([[0], at, [T]])).astype(np.int64)
    merges = np.array([rng.integers(left - 1) for left in range(len(lengths), 1, -1)] or [0], dtype=np.int64)
    return lengths, merges


def drawn_inputs(rng: np.random.Generator, size: str, decay: Any, lengths: Array, dtype: Any) -> Array:
    T = int(lengths.sum())
    info = np.finfo(dtype)
    u = rng.standard_normal(T)
    if size == "inhibitory":
        u = -10 * np.abs(u)
    elif size == "bursts":  # around every cut, in a silence or an inhibition
        u = np.full(T, rng.choice([0.0, -10.0, -1e-3]))
        for at in np.cumsum(lengths)[:-1]:
            u[max(at - rng.integers(3), 0)] = rng.choice([5.0, 1e3, 1e-3])
    elif size == "huge":
        u = u / max(abs(u).max(), 1) * float(info.max) / 4
    elif size == "tiny":
        u = u * float(info.tiny)
    elif size == "silent":
        u = np.where(rng.random(T) < 0.02, u, 0.0)
    elif size == "still":  # a membrane of 1 stays
        u = np.full(T, 1.0 - np.clip(float(decay), -1e6, 1e6))
    return np.asarray(u, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None, max_examples=600)
@given(data=st.data())
def test_any_pieces_in_any_association(maps: ctypes.CDLL, dtype: Any, data: st.DataObject) -> None:
    decay = data.draw(decay_values(dtype))
    T = data.draw(st.one_of(st.integers(1, 12), st.integers(13, 1500)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths, merges = cuts(rng, T, data.draw(st.integers(1, 40)))
    inputs = drawn_inputs(rng, data.draw(st.sampled_from(SIZES)), decay, lengths, dtype)
    bounds = data.draw(st.sampled_from([RECTIFIED, *OTHER_BOUNDS]))
    info = np.finfo(dtype)
    carries = [0.0, 1.0, 1e-3, 7.0, float(info.max) / 2, float(info.smallest_subnormal), float(info.tiny), 1e5, 1e-20]
    h = np.array([*carries, -2.0, -1e5], dtype=dtype)

    found = composed(maps, decay, inputs, lengths, merges, h, None, bounds)
    low, high, overflows = enclosure(decay, inputs, h, bounds)
    assert not np.isnan(found).any(), found
    sinks = overflows if np.isinf(bounds[0]) else np.zeros_like(overflows)  # below the smallest number
    inside = (found >= np.minimum(low, Exact(info.max))) | sinks
    inside &= (found <= np.maximum(high, -Exact(info.max))) | overflows
    # A map of four steps lets subnormal values grow too little, as the header says.
    known = (abs(decay) > 2.0**64) & (abs(h) < 1e-30) & bool((lengths <= 4).any())
    assert (inside | known).all(), (found, low, high)
    # What lies beyond the largest number for certain is infinite.
    assert (np.isinf(found) | ((low <= info.max) & (high >= -info.max)) | known).all(), (found, low, high)


def test_inhibition_between_bursts_is_exact(maps: ctypes.CDLL) -> None:
    """Decays whose power overflows; the membrane is zero but for one burst. Maps that keep `w^n h + b` fail here."""
    for decay in (1.022, 1.1, 4.1, -4.1):
        u = np.full(4096, -10.0, dtype=np.float32)
        u[1023] = 2.0
        for pieces in (2, 4, 16, 512):
            lengths = np.full(pieces, 4096 // pieces, dtype=np.int64)
            merges = np.zeros(pieces, dtype=np.int64)
            h = np.array([0.0, 1.0, 90.0], dtype=np.float32)
            expected = steps(np.float32(decay), u, h)
            assert expected[0] == 0
            found = composed(maps, np.float32(decay), u, lengths, merges, h, None)
            assert np.array_equal(found, expected), (decay, pieces, found, expected)


SPECIAL = [np.inf, -np.inf, np.nan]


@settings(deadline=None, max_examples=1000)
@given(data=st.data())
def test_infinity_and_nan_go_where_the_steps_have_them(maps: ctypes.CDLL, data: st.DataObject) -> None:
    """Numbers are small, so that nothing becomes infinite by itself."""
    decay = np.float32(
        data.draw(st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.7, 1.5, -1.5, 1e-30, np.inf, -np.inf, np.nan]))
    )
    T = data.draw(st.integers(1, 24))
    u = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.25, -8.0]), min_size=T, max_size=T)), dtype=np.float32
    )
    for _ in range(data.draw(st.integers(0, 3))):
        u[data.draw(st.integers(0, T - 1))] = data.draw(st.sampled_from(SPECIAL))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths, merges = cuts(rng, T, data.draw(st.integers(1, 8)))
    h = np.array([0.0, 1.0, 5.0, -2.0, np.inf, -np.inf, np.nan], dtype=np.float32)
    bounds = data.draw(st.sampled_from([RECTIFIED, *OTHER_BOUNDS]))

    expected = steps(decay, u, h, bounds)
    found = composed(maps, decay, u, lengths, merges, h, None, bounds)
    assert np.array_equal(np.isnan(found), np.isnan(expected)), (found, expected)
    assert np.array_equal(np.isinf(found), np.isinf(expected)), (found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_the_backward_maps(maps: ctypes.CDLL, dtype: Any, data: st.DataObject) -> None:
    decay = data.draw(decay_values(dtype))
    T = data.draw(st.one_of(st.integers(1, 12), st.integers(13, 1500)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths, merges = cuts(rng, T, data.draw(st.integers(1, 40)))
    g = rng.standard_normal(T).astype(dtype)
    active = (rng.random(T) < data.draw(st.sampled_from([0.0, 0.5, 0.99, 1.0, 1.0]))).astype(np.uint8)
    beyond = data.draw(st.sampled_from([0.0, *SPECIAL]))  # what relu masks
    g[active == 0] = beyond
    r = np.array([0.0, 1.0, -1.0, 1e-3, 1e5], dtype=dtype)
    found = composed(maps, decay, g, lengths, merges, r, active)

    info = np.finfo(dtype)
    w, exact, size = Exact(decay), r.astype(Exact), abs(r.astype(Exact))
    with np.errstate(all="ignore"):
        for g_t, passes in zip(g.astype(Exact), active, strict=True):
            exact = w * (g_t + exact) if passes else np.zeros_like(exact)
            size = abs(w) * (abs(g_t) + size + Exact(info.smallest_subnormal)) if passes else np.zeros_like(size)
        allowed = (4 * T + 16) * Exact(info.eps) / 2 * size + Exact(info.smallest_subnormal)
        representable = size <= info.max
        assert (abs(found - exact)[representable] <= allowed[representable]).all(), (found, exact)
        certain = (abs(exact) - allowed > info.max) & np.isfinite(exact)
        assert (np.isinf(found) & (np.sign(found) == np.sign(exact)))[certain].all(), (found, exact)


@settings(deadline=None, max_examples=1000)
@given(data=st.data())
def test_infinity_and_nan_in_the_backward_maps(maps: ctypes.CDLL, data: st.DataObject) -> None:
    decay = np.float32(data.draw(st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.7, 1.5, -1.5])))
    T = data.draw(st.integers(1, 24))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths, merges = cuts(rng, T, data.draw(st.integers(1, 8)))
    g = rng.standard_normal(T).astype(np.float32)
    for _ in range(data.draw(st.integers(0, 3))):
        g[data.draw(st.integers(0, T - 1))] = data.draw(st.sampled_from(SPECIAL))
    active = (rng.random(T) < 0.9).astype(np.uint8)
    expected = np.array([0.0, 2.0, np.inf, -np.inf, np.nan], dtype=np.float32)
    found = composed(maps, decay, g, lengths, merges, expected, active)
    with np.errstate(all="ignore"):
        for g_t, passes in zip(g, active, strict=True):
            expected = decay * (g_t + expected) if passes else np.zeros_like(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
