"""The launch plan, on the shapes that the benchmarks measure, without a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import leakypar
from leakypar import launch_plan
from leakypar.launch_plan import DeviceFacts

from .implementations import CPU, unavailable

pytestmark = pytest.mark.skipif(unavailable(CPU) is not None, reason=str(unavailable(CPU)))

H100 = DeviceFacts(multiprocessors=132, cache_bytes=50 * 2**20)
TILES = leakypar.Tiles(columns=128, batch_rows=1, stages=2, weights_resident=True, time_blocks=4)
SHAPES = {
    "tutorial": (25, 128, 784, 128),
    "wide-tutorial": (25, 128, 784, 1000),
    "speech": (250, 256, 700, 512),
    "long": (1000, 32, 128, 128),
    "streaming": (16384, 1, 64, 512),
    "audio": (4096, 8, 256, 1024),
    "square": (128, 64, 2048, 2048),
    "onm": (500, 10, 512, 512),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_time_is_split_where_channels_do_not_fill_the_chip(name: str, dtype: torch.dtype) -> None:
    T, N, C, H = SHAPES[name]
    chosen = leakypar.plan(T, N, C, H, dtype=dtype, device=H100)
    in_flight = N * H * dtype.itemsize * 16  # a thread keeps the loads of sixteen rows in flight
    filled = in_flight >= 132 * 16 * 1024
    assert chosen.forward == chosen.backward == ("sequential" if filled else "look_back")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_chunk_fits_half_the_cache_and_chunks_are_even(name: str, dtype: torch.dtype) -> None:
    T, N, C, H = SHAPES[name]
    steps = leakypar.plan(T, N, C, H, dtype=dtype, device=H100).gemm_chunk
    row = N * H * dtype.itemsize
    fitting = min(T, max(-(-1024 // N), H100.cache_bytes // 2 // row))
    chunks = -(-T // steps)
    assert 1 <= steps <= fitting
    assert chunks == -(-T // fitting)  # no more chunks than must be
    assert chunks * steps - T < chunks  # and none a step longer than it need be


def test_extremes() -> None:
    assert leakypar.plan(1, 1, 1, 1, device=H100).forward == "sequential"  # nothing to split
    assert leakypar.plan(0, 0, 0, 0, device=H100).gemm_chunk == 1
    huge = leakypar.plan(2**20, 2**16, 16, 2**20, device=H100)
    assert huge == ("sequential", "sequential", 1, 2**20, None, 0, 0)
    assert leakypar.plan(10_000, 1, 4, 8, device="cpu").forward == "sequential"


def forced(**tiles: int) -> leakypar.Plan:
    return leakypar.Plan("project_scan", "sequential", 1, 1, TILES._replace(**tiles))


def scans(forward: str = "sequential", backward: str = "sequential", **settings: Any) -> leakypar.Plan:
    return leakypar.Plan(forward, backward, 1, 1)._replace(**settings)  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="H must be an int, got float"):
        leakypar.plan(1, 1, 1, 1.0, device=H100)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="N must not be negative, got -1"):
        leakypar.plan(1, -1, 1, 1, device=H100)
    with pytest.raises(ValueError, match="device must be a CUDA device, 'cpu' or DeviceFacts, got 'meta'"):
        leakypar.plan(1, 1, 1, 1, device="meta")
    with pytest.raises(TypeError, match=r"dtype must be .*, got torch\.int8"):
        leakypar.plan(1, 1, 1, 1, dtype=torch.int8, device=H100)
    for plan, error, message in (
        (7, TypeError, "must be None, 'sequential', 'look_back', 'project_scan', 'events' or a leakypar.Plan, got int"),
        ("lanes", ValueError, "a method must be 'sequential', 'look_back' or 'project_scan', got 'lanes'"),
        (scans("sequential", "both"), ValueError, "a method must be .*, got 'both'"),
        (scans("sequential", "project_scan"), ValueError, "backward must be .*, got 'project_scan'"),
        (scans(gemm_chunk=0), ValueError, " gemm_chunk must be at least 1, got 0"),
        (scans(backward_gemm_chunk=0), ValueError, "backward_gemm_chunk must be at least 1, got 0"),
        (scans(tiles=TILES), ValueError, "tiles must be None unless forward is 'project_scan'"),
        (leakypar.Plan("project_scan", "sequential", 1, 1, (128, 1)), TypeError, "tiles must be .* got tuple"),
        (forced(columns=32), ValueError, "tiles has columns 32, expected one of 64, 128"),
        (forced(batch_rows=3), ValueError, "tiles has batch_rows 3, expected one of 1, 2, 4, 8"),
        (forced(stages=5), ValueError, "tiles has stages 5, expected one of 1, 2, 3, 4"),
        (forced(time_blocks=0), ValueError, "tiles has time_blocks 0, expected 1 or more"),
    ):
        with pytest.raises(error, match=message):
            launch_plan.request(plan)


def test_a_plan_can_be_forced_as_it_was_read() -> None:
    chosen = leakypar.plan(50, 2, 3, 8, device=H100)
    assert launch_plan.request(chosen) == (*chosen[:4], None, 0, 0)


def test_a_backward_is_chunked_where_its_gradient_would_leave_the_cache() -> None:
    known = H100._replace(clock_khz=1_755_000, bytes_per_second=3_352 * 10**9)
    T, N, C, H = SHAPES["speech"]
    chosen = leakypar.plan(T, N, C, H, dtype=torch.bfloat16, device=known)
    assert chosen.backward == "sequential"
    assert chosen.backward_gemm_chunk * N * H * 2 <= known.cache_bytes / 2 < T * N * H * 2
    assert T // 3 <= chosen.backward_gemm_chunk < T  # 65 MB in three chunks
    for name in ("tutorial", "audio"):  # all of it stays; a look-back scan, which would start its chain anew
        whole = SHAPES[name][0]
        assert leakypar.plan(*SHAPES[name], dtype=torch.bfloat16, device=known).backward_gemm_chunk == whole
    assert leakypar.plan(T, N, C, H, dtype=torch.bfloat16, device=H100).backward_gemm_chunk == T  # rates not known
