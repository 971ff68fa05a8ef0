"""The exponential of `csrc/math/exponential.h`: its error is what the header says, for every float32."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

Array = np.ndarray[Any, np.dtype[Any]]
LARGEST_ERROR = 1.25  # in units of the last place, the header's
REALS = {"float": np.float32, "double": np.float64}
SOURCE = """
#include "math/exponential.h"
#define EXPONENTIALS(Real) \\
  extern "C" void exponentials_##Real(const Real* x, Real* result, long long count) { \\
    for (long long i = 0; i < count; ++i) result[i] = leakypar::exponential_of_negative(x[i]); \\
  }
EXPONENTIALS(float)
EXPONENTIALS(double)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("exponential")
    source, library = folder / "exponential.cpp", folder / "exponential.so"
    source.write_text(SOURCE)
    flags = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-shared", "-fPIC"]
    subprocess.run([str(COMPILER), *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def exponentials(library: ctypes.CDLL, x: Array) -> Array:
    result = np.empty_like(x)
    name = next(name for name, dtype in REALS.items() if dtype == x.dtype)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, result)]
    getattr(library, f"exponentials_{name}")(*pointers, ctypes.c_longlong(len(x)))
    return result


def error(result: Array, exact: Array) -> Any:
    """The largest, in units of the last place that a number as the exact one has."""
    info = np.finfo(result.dtype)
    exponents = np.maximum(np.frexp(exact)[1] - 1, info.minexp)
    return (np.abs(result - exact) / np.ldexp(exact.dtype.type(1), exponents - info.nmant)).max()


def test_every_float32(library: ctypes.CDLL) -> None:
    """From -2^-26, above which the result is 1, to -105, below which it is 0."""
    first, last = np.array([-(2.0**-26), -105], dtype=np.float32).view(np.uint32)
    worst = 0.0
    for begin in range(int(first), int(last), 1 << 20):
        x = np.arange(begin, begin + (1 << 20), dtype=np.uint32).view(np.float32)
        worst = max(worst, error(exponentials(library, x), np.exp(x.astype(np.float64))))
    assert 0.5 < worst <= LARGEST_ERROR  # no error below a half can be: the sweep has seen the range


def test_random_float64(library: ctypes.CDLL) -> None:
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.uniform(least, 0, 1_000_000) for least in (-1e-3, -1, -50, -746)])
    worst = error(exponentials(library, x), np.exp(x.astype(np.longdouble)))
    assert 0.5 < worst <= LARGEST_ERROR


@pytest.mark.parametrize("dtype", REALS.values(), ids=REALS)
def test_ends(library: ctypes.CDLL, dtype: Any) -> None:
    info = np.finfo(dtype)
    ones = np.array([0.0, -0.0, -info.smallest_subnormal, -info.tiny, -info.eps / 8], dtype=dtype)
    assert (exponentials(library, ones) == 1).all()
    # Half the least subnormal number, and what lies below: to the largest, and beyond it.
    zeros = np.array([(info.minexp - info.nmant - 1) * np.log(2) - 0.1, -1e30, info.min, -np.inf], dtype=dtype)
    assert (exponentials(library, zeros) == 0).all()
    assert np.isnan(exponentials(library, np.array([np.nan], dtype=dtype))).all()
