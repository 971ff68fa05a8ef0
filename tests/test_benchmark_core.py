"""What the suite and `python -m leakypar.benchmark` measure with: inputs, turns, medians, ratios; and that command."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leakypar import benchmark, measuring
from leakypar.benchmark import FLOOR, FUSED, RNN, SHAPES, contestant, figures, layers
from leakypar.measuring import (
    Contestant,
    HostClock,
    Reading,
    Shape,
    make_problem,
    race,
    set_bytes,
    set_count,
    summarize,
    turns,
)

CPU = torch.device("cpu")
TINY = Shape("tiny", 40, 4, 24, 16)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(benchmark, "ONE_SEQUENCE", Shape("one", 6, 1, 5, 4))
    monkeypatch.setattr(benchmark, "QUICK", ("tiny",))
    monkeypatch.setattr(measuring, "ROTATED_BYTES", 1)


def test_of_three_each_comes_after_each_other_equally_often() -> None:
    order = "".join(name for _, name in turns({"a": 600, "b": 600, "c": 600}))
    assert all(set(order[at : at + 3]) == set("abc") for at in range(0, len(order), 3))
    within = Counter(order[at : at + 2] for place in (0, 1) for at in range(place, len(order), 3))
    assert set(within.values()) == {200}, within


def test_a_slow_contestant_takes_part_in_rounds_spread_over_all() -> None:
    found = list(turns({"fast": 12, "slow": 3}))
    assert [round_ for round_, name in found if name == "fast"] == list(range(12))
    assert [round_ for round_, name in found if name == "slow"] == [3, 7, 11]
    assert list(turns({})) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1e-6])
def test_times_that_cannot_be(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        summarize([1e-6, bad, 1e-6])
    with pytest.raises(ValueError, match="none"):
        summarize([])


def test_median_and_spread() -> None:
    assert summarize([1.0, 2.0, 4.0, 100.0, 3.0]) == (3.0, 1.0, 1.0)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """Not the ratio of medians: the machine got slower by ten in the last rounds, and one has only those."""
    floor = {index: Reading(seconds, seconds) for index, seconds in enumerate([1.0, 1.0, 1.0, 10.0, 10.0])}
    ours = {index: Reading(seconds, 2 * seconds) for index, seconds in ((3, 20.0), (4, 22.0))}
    found = figures({"nn.Linear": floor, "ours": ours}, "ours", "nn.RNN", "nn.Linear")
    assert found["time_over_linear"] == pytest.approx(2.1)
    assert found["time_over_linear_spread"] == pytest.approx(0.1)
    assert found["speedup_over_rnn"] is None
    assert (found["rounds"], found["median_us"], found["wall_us"]) == (2, pytest.approx(21e6), pytest.approx(42e6))


def test_a_race_rotates_inputs_warms_up_and_keeps_going_after_an_error() -> None:
    used: dict[str, list[int]] = {"good": [], "bad": []}

    def call(name: str) -> Callable[[int], object]:
        def called(index: int) -> None:
            used[name].append(index)
            if name == "bad" and len(used[name]) == 6:
                raise RuntimeError("broke")

        return called

    runners = {name: Contestant(call(name), lambda: None) for name in used}
    readings, errors = race(runners, HostClock(), 3, seconds=60, fewest=3, most=8)
    assert used["good"][:3] == [0, 1, 2], "every input is warmed up on"
    assert set(used["good"][3:]) == {0, 1, 2}
    assert sorted(readings["good"]) == list(range(8))
    assert errors == {"bad": "RuntimeError: broke"}
    assert len(used["bad"]) == 6


def test_input_sets_outgrow_a_cache() -> None:
    assert set_count(SHAPES["speech"], "float32") == 2
    small = SHAPES["onm"]
    assert set_count(small, "bfloat16") == 7
    assert set_count(small, "bfloat16") * set_bytes(small, "bfloat16") >= 64 << 20
    assert set_count(TINY, "float32") == 8


def test_inputs_are_what_they_say() -> None:
    spikes = make_problem(Shape("s", 50, 8, 100, 4), "float32", "spikes", CPU).sets
    assert set(spikes[0].x.unique().tolist()) == {0.0, 1.0}
    assert spikes[0].x.mean().item() == pytest.approx(0.2, abs=0.01)
    assert not torch.equal(spikes[0].x, spikes[1].x)
    few = make_problem(Shape("s", 50, 8, 100, 4), "float32", "2.5%", CPU).sets
    assert few[0].x.mean().item() == pytest.approx(0.025, abs=0.005)
    dense = make_problem(Shape("s", 50, 8, 100, 4), "float32", "dense", CPU).sets[0].x
    assert (dense == 0).sum() == 0
    with pytest.raises(ValueError, match="expected spikes, dense or a rate"):
        make_problem(TINY, "float32", "zeros", CPU)


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_a_row_for_every_contestant(tmp_path: Path) -> None:
    pytest.importorskip("leakypar._C", reason="the extension was not built")
    threads, path = torch.get_num_threads(), tmp_path / "rows.csv"
    chosen = ["--shapes", "all", "--dtypes", "float32,bfloat16", "--inputs", "5%,dense", "--threads", "1"]
    try:
        assert benchmark.main([*chosen, "--seconds", "0.001", "--csv", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2 * 3
    assert {(row["implementation"], row["backend"]) for row in rows} == {(FLOOR, ""), (RNN, "rnn"), (FUSED, "fused")}
    for row in rows:
        numbers = ("median_us", "spread_us", "speedup_over_rnn", "time_over_linear", "time_over_linear_spread")
        assert all(math.isfinite(float(row[name])) for name in numbers)
        assert int(row["rounds"]) >= 5


@pytest.mark.usefixtures("tiny")
def test_backends_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("leakypar._C", reason="the extension was not built")

    def spoiled(problem: measuring.Problem) -> dict[str, torch.nn.Module]:
        made = layers(problem)
        made[FUSED].register_forward_hook(lambda module, arguments, output: output.roll(1, 0))
        return made

    monkeypatch.setattr(benchmark, "layers", spoiled)
    with pytest.raises(ValueError, match="differ between fused and rnn"):
        benchmark.main(["--threads", str(torch.get_num_threads())])


def test_without_kernels_it_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark.ops, "_BUILT_FOR", ())
    assert benchmark.main([]) == 1
    printed = capsys.readouterr().err
    assert "built without cpu kernels" in printed
    assert "pip install --no-build-isolation" in printed


@pytest.mark.parametrize(
    "arguments", [["--shapes", "huge"], ["--dtypes", "int8"], ["--passes", "backward"], ["--inputs", "120%"]]
)
def test_unknown_choices_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    said = capsys.readouterr().err
    assert f"{arguments[0]}: " in said
    assert arguments[1] in said


def test_the_layers_that_are_timed_agree() -> None:
    pytest.importorskip("leakypar._C", reason="the extension was not built")
    problem = make_problem(TINY, "float64", "spikes", CPU, sets=1)
    problem.sets[0].x.requires_grad_()
    rivals = layers(problem)
    spikes = [contestant(rivals[name], problem.sets, "training").call(0) for name in (FUSED, RNN)]
    torch.testing.assert_close(*spikes, rtol=0, atol=0)
    ours, theirs = (dict(rivals[name].named_parameters()) for name in (FUSED, RNN))
    torch.testing.assert_close(ours["rnn.weight_ih_l0"].grad, theirs["rnn.weight_ih_l0"].grad)
