"""Two runs, side by side: a planted regression is found, and noise is not one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")

from benchmarks import compare, results
from benchmarks.compare import IncomparableError
from benchmarks.results import Row, Writer, read
from tests.benchmark_cases import make_row

SHAPES = ("tutorial", "speech", "long", "onm")


def a_run(seed: int = 0, noise: float = 0.0, **changes: float) -> list[Row]:
    """Medians of 1000 µs with a spread of 20, moved by ``noise`` of them at most; ``changes`` are factors by shape."""
    draw = random.Random(seed)
    return [
        make_row(
            shape=shape,
            pass_=pass_,
            median_us=1000 * changes.get(shape, 1.0) * (1 + draw.uniform(-noise, noise)),
            spread_us=20.0,
        )
        for shape in SHAPES
        for pass_ in ("forward", "training")
    ]


def frame(folder: Path, rows: list[Row]) -> Any:
    """The rows as they are read back."""
    Writer(folder / "rows.csv").write(rows)
    return read(folder / "rows.csv")


def compared(folder: Path, old: list[Row], new: list[Row]) -> Any:
    return compare.compare(frame(folder, old), frame(folder, new))


def written(folder: Path, name: str, rows: list[Row]) -> str:
    Writer(folder / name).write(rows)
    return str(folder / name)


def test_a_planted_regression_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = written(tmp_path, "old.csv", a_run()), written(tmp_path, "new.csv", a_run(1, speech=1.3, onm=0.5))
    assert compare.main([old, new]) == 1
    lines = capsys.readouterr().out.splitlines()
    case = "leakypar fused (auto), speech float32 spikes forward (2)"
    assert lines[0] == f"slower: {case}: 1.00 ms ± 20.0 µs -> 1.30 ms ± 20.0 µs, 1.30×"
    assert lines[2].startswith("faster: leakypar fused (auto), onm")
    assert lines[-1].startswith("0 broken, 2 slower, 2 faster, 0 no longer timed, 4 unmoved")


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_a_regression(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = written(tmp_path, "old.csv", a_run()), written(tmp_path, "new.csv", a_run(seed, noise=0.05))
    assert compare.main([old, new]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 broken, 0 slower, 0 faster, 0 no longer timed, 8 unmoved, 0 only in the old file, 0 only in the new one"
    ]


@pytest.mark.parametrize(("spread", "moved"), [(150.0, False), (10.0, True)])
def test_a_wide_spread_excuses_a_large_difference(spread: float, moved: bool, tmp_path: Path) -> None:
    old, new = ([make_row(median_us=median, spread_us=spread)] for median in (1000.0, 1500.0))
    assert list(compared(tmp_path, old, new).verdict) == ["slower" if moved else "unmoved"]


def test_a_faster_run_is_no_failure(tmp_path: Path) -> None:
    old, new = written(tmp_path, "old.csv", a_run()), written(tmp_path, "new.csv", a_run(onm=0.5))
    assert compare.main([old, new]) == 0


def test_what_broke_is_worse_and_what_was_skipped_is_said(tmp_path: Path) -> None:
    old = a_run()
    refused = make_row(shape="onm", pass_="forward", status=results.REFUSED, median_us=None, note="wrong spikes")
    skipped = make_row(shape="onm", pass_="training", status=results.SKIPPED, median_us=None, note="no memory")
    found = compared(tmp_path, old, [*old[:-2], refused, skipped])
    assert set(found.verdict) == {"broken", "no longer timed", "unmoved"}
    text = compare.report(found)
    assert "broken: leakypar fused (auto), onm float32 spikes forward (2): wrong spikes" in text
    assert "no longer timed: leakypar fused (auto), onm float32 spikes training (2): no memory" in text
    paths = (written(tmp_path, name, rows) for name, rows in (("old.csv", old), ("new.csv", [*old[:-1], skipped])))
    assert compare.main([*paths]) == 0


def test_cases_of_one_file_only_are_counted(tmp_path: Path) -> None:
    old, new = a_run(), a_run()
    new = [*new[2:], make_row(shape="square"), make_row(shape="audio")]
    found = compared(tmp_path, old[:5], new)
    counts = dict(found.verdict.value_counts())
    assert counts == {"unmoved": 3, "only in the old file": 2, "only in the new one": 5}


def test_another_torch_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (written(tmp_path, f"{each}.csv", [make_row(torch=each)]) for each in ("2.12.0", "2.13.0"))
    assert compare.main([old, new]) == 0
    assert capsys.readouterr().out.startswith("differs: torch 2.12.0 -> 2.13.0\n")


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([make_row(device="another CPU")], "another CPU: times of different"),
        ([make_row(threads=999)], "none that was timed in both"),
        ([make_row(shape="square")], "none that was timed in both"),
    ],
)
def test_what_cannot_be_compared(
    new: list[Row], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(IncomparableError, match=message):
        compared(tmp_path, [make_row()], new)
    assert compare.main([written(tmp_path, "old.csv", [make_row()]), written(tmp_path, "new.csv", new)]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path / "old.csv"), str(tmp_path / "new.csv")]) == 2
    assert "old.csv" in capsys.readouterr().err
