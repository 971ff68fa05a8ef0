"""The examples on recorded time series: their data, one network, and that the pages show the results that are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from examples import time_series
from examples.time_series import NEURONS, ROOT, STACK, Neurons, Sequences, Settings

from .layers import without_kernels

PAGES = ["japanese_vowels", "basic_motions"]


def sequences(N: int = 24, C: int = 3, seed: int = 0) -> Sequences:
    """Three classes, each with an offset of its own, in sequences of 4 to 12 steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % 3
    lengths = torch.randint(4, 13, (N,), generator=generator)
    x = torch.randn(12, N, C, generator=generator) + 2 * torch.nn.functional.one_hot(labels, C)
    valid = (torch.arange(12).unsqueeze(1) < lengths).unsqueeze(2)
    return Sequences(x * valid, lengths, labels)


def test_prepared_features_are_normal_and_zero_beyond_a_sequence() -> None:
    train, test = time_series.prepared((sequences(), sequences(seed=1)))
    for data in (train, test):
        assert data.x.shape == (12, 24, 6)
        assert not data.x[(data.valid == 0).expand_as(data.x)].any()
    own = train.x[train.valid.squeeze(2).bool()]
    torch.testing.assert_close(own.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(own.std(0, correction=0), torch.ones(6))
    recorded = sequences(seed=1).x
    step = test.x[3, 0, 3:] - test.x[2, 0, 3:]
    scale = step / (recorded[3, 0] - 2 * recorded[2, 0] + recorded[1, 0])  # of a difference of differences
    torch.testing.assert_close(
        test.x[2, 0, 3:] - test.x[1, 0, 3:], scale * (recorded[2, 0] - 2 * recorded[1, 0] + recorded[0, 0])
    )


@without_kernels
@pytest.mark.parametrize("neurons", [NEURONS[3], NEURONS[6]], ids=lambda each: each.name)
def test_a_network_learns_and_a_seed_repeats_it(neurons: Neurons) -> None:
    settings = replace(STACK if neurons.stack else Settings(), hidden=16, epochs=15, learning_rate=2e-2, noise=0.1)
    sets = (sequences(), sequences(seed=1))
    rows = [time_series.run(neurons, 3, sets, settings) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0]["accuracy"] > 0.8
    assert rows[0]["rate before"] == pytest.approx(settings.rate, rel=0.1)
    assert time_series.run(neurons, 4, sets, settings) != rows[0] | {"seed": 4}


@without_kernels
def test_what_stands_beyond_a_sequence_does_not_matter() -> None:
    torch.manual_seed(0)
    data = sequences()
    network = time_series.Network(3, 3, NEURONS[4], Settings(hidden=8)).eval()
    torch.testing.assert_close(network(data.x + 9 * (1 - data.valid), data.lengths), network(data.x, data.lengths))


def row(name: str, seed: int, accuracy: float) -> dict[str, Any]:
    rates = {f"{what} {when}": 0.1 for what in ("rate", "silent", "saturated") for when in ("before", "after")}
    return {"neurons": name, "seed": seed, "parameters": 12345, **rates, "accuracy": accuracy}


def test_results_are_kept_and_shown(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    rows = [row("a", 0, 0.5), row("a", 1, 0.7), row("b", 0, 1.0), row("b", 1, 1.0)]
    monkeypatch.setattr(time_series, "ROOT", tmp_path)
    monkeypatch.setattr(time_series, "measured", lambda *_: iter(rows))
    (tmp_path / "docs").mkdir()
    (tmp_path / "examples").mkdir()
    page = tmp_path / "docs" / "some.md"
    page.write_text("before\n<!-- results:some -->\nold\n<!-- /results -->\nafter\n")
    threads = torch.get_num_threads()
    try:
        time_series.main("Some", "some", Settings(), ["--write"])
    finally:
        torch.set_num_threads(threads)
    shown = page.read_text()
    assert "| a | 60.0% | 14.1% | 50.0% | 10.0% → 10.0% |" in shown
    assert "2 seeds; at most 12,345 parameters" in shown
    assert shown.startswith("before\n<!-- results:some -->\n")
    assert "old" not in shown
    assert time_series.read("some")[0]["accuracy"] == "0.5"
    assert "b, seed 1: 100.0%" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected <!-- results:some --> and <!-- /results --> once"):
        time_series.with_table("nothing", "some")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_results_that_are_kept(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    assert time_series.with_table(page, name) == page
    rows = time_series.read(name)
    assert list(dict.fromkeys(each["neurons"] for each in rows)) == [each.name for each in NEURONS]
    assert len(rows) == len(NEURONS) * time_series.SEEDS
    assert max(int(each["parameters"]) for each in rows) < 50_000


def test_the_aim_for_japanese_vowels_is_reached() -> None:
    rows = time_series.read("japanese_vowels")
    for name in (each.name for each in NEURONS if not each.stack):
        assert mean(float(each["accuracy"]) for each in rows if each["neurons"] == name) >= 0.975, name


@pytest.mark.parametrize(
    ("name", "sizes", "classes", "shortest"),
    [("JapaneseVowels", [(29, 270, 12), (29, 370, 12)], 9, 7), ("BasicMotions", [(100, 40, 6), (100, 40, 6)], 4, 100)],
)
def test_the_data_are_in_the_wheel_of_aeon(name: str, sizes: Any, classes: int, shortest: int) -> None:
    pytest.importorskip("aeon", reason="needs the extra: pip install leakypar[examples]")
    sets = time_series.load(name)
    assert [tuple(each.x.shape) for each in sets] == sizes
    for each in sets:
        assert each.labels.unique().tolist() == list(range(classes))
        assert each.lengths.min() == shortest
        assert not each.x[(each.valid == 0).expand_as(each.x)].any()
        assert each.x.isfinite().all()
    assert math.prod(sizes[0]) == sets[0].x.numel()
