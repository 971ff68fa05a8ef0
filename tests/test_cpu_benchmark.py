"""`python -m leakypar.benchmark`, and the page that `make bench-cpu` writes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from benchmarks import cpu
from leakypar import benchmark
from leakypar.benchmark import Case, Row, call, inputs, layers


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", {"tiny": (6, 2, 5, 4)})
    monkeypatch.setattr(benchmark, "QUICK", ("tiny",))


def test_the_command_writes_a_row_for_every_case(tmp_path: Path) -> None:
    pytest.importorskip("leakypar._C", reason="the extension was not built")
    threads = torch.get_num_threads()
    path = tmp_path / "rows.csv"
    arguments = ["--shapes", "all", "--dtypes", "float32,float64", "--threads", "1", "--seconds", "0.01", "--csv"]
    try:
        assert benchmark.main([*arguments, str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = {(dtype, direction) for dtype in ("float32", "float64") for direction in ("forward", "training")}
    assert {(row["dtype"], row["direction"]) for row in rows} == expected
    assert len(rows) == 4
    for row in rows:
        assert all(float(row[name]) > 0 for name in ("linear", "rnn", "fused", "fused_over_linear", "rnn_over_fused"))
        assert int(row["rounds"]) >= 5
        assert math.isfinite(float(row["spread"]))


def test_without_kernels_it_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.ops, "_BUILT_FOR", ())
    assert benchmark.main([]) == 1
    printed = capsys.readouterr().err
    assert "built without cpu kernels" in printed
    assert "pip install --no-build-isolation" in printed


@pytest.mark.parametrize("arguments", [["--shapes", "huge"], ["--dtypes", "int8"], ["--passes", "backward"]])
def test_unknown_choices_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert f"{arguments[0]}: expected some of" in capsys.readouterr().err


def test_the_layers_that_are_timed_agree() -> None:
    pytest.importorskip("leakypar._C", reason="the extension was not built")
    torch.manual_seed(0)
    rivals = layers("tiny", torch.float64)
    for x, gradient in inputs("tiny", torch.float64):
        torch.testing.assert_close(rivals["fused"](x), rivals["rnn"](x), rtol=0, atol=0)
        for name in ("fused", "rnn"):
            call(rivals[name], x, gradient, "training")
        ours, theirs = (dict(rivals[name].named_parameters()) for name in ("fused", "rnn"))
        torch.testing.assert_close(ours["rnn.weight_ih_l0"].grad, theirs["rnn.weight_ih_l0"].grad)


def row(shape: str, dtype: str, direction: str, threads: int, over_linear: float) -> dict[str, str]:
    found = Row(
        Case(shape, dtype, direction, threads), "6 x 2 x 5 x 4", 1.0, 9.0, over_linear, over_linear, 7.0, 0.1, 5
    )
    return {**{name: str(value) for name, value in found.record().items()}, "device": "a CPU", "commit": "c0ffee"}


def test_the_page_is_made_of_its_records_alone(tmp_path: Path) -> None:
    times = [
        row("tiny", dtype, "forward", 1, ratio) for dtype, ratio in (("float32", 1.5), ("float64", 2), ("bfloat16", 3))
    ]
    memory = [{"shape": "tiny", "linear": "10.0", "rnn": "20.0", "fused": "15.0", "recompute": "11.0"}]
    cpu.write(tmp_path / "times.csv", times)
    assert cpu.read(tmp_path / "times.csv") == times
    text = cpu.PAGE.read_text(encoding="utf-8")
    page = cpu.page(times, memory, text)
    assert "a CPU, torch" in page
    assert "commit c0ffee." in page
    assert "| tiny | 6 × 2 × 5 × 4 | 1.50 ± 0.10, 7.0× |" in page
    assert "| tiny | forward | 1 | 2.00 | 3.00 |" in page
    assert "| tiny | 10.0 | 20.0 | 15.0 | 11.0 | 0.75 | 1.10 |" in page
    assert cpu.page(times, memory, page) == page


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        cpu.rewrite("no markers", {"float32": ["a line"]})
