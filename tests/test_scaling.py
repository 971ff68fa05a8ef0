"""The page on many devices: its arithmetic, and that its tables are the generator's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmarks need rich, which is not installed")

from benchmarks import scaling
from benchmarks.results import Row, Writer
from benchmarks.scaling import (
    DEVICES,
    LINKS,
    PAGE,
    all_reduce,
    gradient_bytes,
    measured_table,
    messages_table,
    split_table,
    split_work,
)
from benchmarks.shapes import SHAPES
from benchmarks.table import INPUT, OURS
from leakypar import LeakyParallel

ROW = Row(
    device_type="cuda",
    device="a GPU",
    driver="1",
    torch="2.13.0",
    cuda="13.0",
    python="3.11",
    leakypar="0.1",
    commit="c0ffee",
    threads=1,
    load=0.0,
    tf32="on",
    dtype="float32",
    shape="speech",
    T=250,
    N=256,
    C=700,
    H=512,
    pass_="training",
    input=INPUT,
    spike_rate=0.2,
    implementation=OURS.partition(" (")[0],
    plan="auto",
    function="same",
    status="ok",
    median_us=1000.0,
)


@pytest.mark.parametrize("learn_decay", [False, True])
def test_gradient_bytes_are_those_of_the_layer(learn_decay: bool) -> None:
    shape = SHAPES["tutorial"]
    layer = LeakyParallel(shape.C, shape.H, beta=0.5, learn_beta=learn_decay)
    trained = sum(parameter.nbytes for parameter in layer.parameters() if parameter.requires_grad)
    assert gradient_bytes(shape, learn_decay=learn_decay) == trained


def test_an_all_reduce_by_hand() -> None:
    nvlink = LINKS[0]
    assert all_reduce(450e6, 2, nvlink) == pytest.approx(1e-3 + 2 * 3e-6)
    assert all_reduce(450e6, 8, nvlink) == pytest.approx(1.75e-3 + 14 * 3e-6)


def test_the_work_of_a_split_sequence_by_hand() -> None:
    forward, training = split_work(SHAPES["square"])  # C = H
    assert forward == pytest.approx(3 / 2)
    assert training == pytest.approx(13 / 10)


def test_the_pages_arithmetic_is_as_generated() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for table in (messages_table(DEVICES), split_table(DEVICES)):
        assert "\n".join(table) in text
    assert scaling.page(scaling.page(text, [[ROW]]), [[ROW]]) == scaling.page(text, [[ROW]])


def test_without_a_gpu_nothing_is_said_to_be_measured() -> None:
    on_cpu = dataclasses.replace(ROW, device_type="cpu")
    failed = dataclasses.replace(ROW, status="failed", median_us=None)
    assert measured_table([[on_cpu], [failed]], DEVICES) == ["not yet measured"]


def test_a_gpu_fills_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    Writer(tmp_path / "gpu.csv").write([ROW, dataclasses.replace(ROW, dtype="bfloat16")])
    assert scaling.main(["--page", str(page), "--results", str(tmp_path)]) == 0
    # 1.44 MB: 5.6 µs and 42 µs of latency over NVLink, 39 and 70 over PCIe, 50 and 112 over InfiniBand, against 1 ms.
    assert "a GPU, torch 2.13.0, float32, TF32 on, commit `c0ffee`." in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").count("| speech | 1.00 ms | 95% | 90% | 86% |") == 1
    assert "not yet measured" not in page.read_text(encoding="utf-8").partition("<!-- measured -->")[2]
    assert str(page) in capsys.readouterr().out


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one pair of markers"):
        scaling.page("no tables here", [])
