"""The benchmark suite itself: its bounds, its checks, its files."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from benchmarks import __main__ as command_line
from benchmarks import bounds, environment, host_time, memory, plot, results, runner, stack, table
from benchmarks.bounds import Ceilings, bound_seconds, layer_kernels, linear_kernels
from benchmarks.environment import ROOT, describe, set_tf32
from benchmarks.implementations import BASELINE, FLOOR, Layer, all_implementations
from benchmarks.implementations.linear import Linear
from benchmarks.implementations.rnn import RNN, RNNLayer
from benchmarks.results import Row, Writer, label, microseconds, read
from benchmarks.shapes import GROWTH, SHAPES, parse_shapes
from leakypar.measuring import HostClock, Problem, Reading, Shape, make_problem
from tests.benchmark_cases import CPU, all_for_the_cpu, make_row, run_case, settings


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the ceilings cheap to measure, and leaves torch's switches as they were."""
    monkeypatch.setattr(bounds, "COPY_BYTES", {"cpu": 1 << 16})
    monkeypatch.setattr(bounds, "PRODUCT_SIZE", {"cpu": 32})
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    threads = torch.get_num_threads()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches
    torch.set_num_threads(threads)


# Bounds

H100 = {"float32": (4, Ceilings(3.0e12, 400e12)), "bfloat16": (2, Ceilings(3.0e12, 790e12))}
# Microseconds, in the order of SHAPES, as the design derives them by hand.
EXPECTED_BOUNDS = {
    ("forward", "float32"): (4.0, 12.5, 115, 10.9, 12.6, 56, 172, 7.2),
    ("forward", "bfloat16"): (2.0, 6.4, 58, 5.5, 6.3, 28, 87, 3.6),
    ("training", "float32"): (14.3, 51, 508, 55, 83, 348, 583, 35),
    ("training", "bfloat16"): (7.1, 26, 256, 27, 41, 174, 295, 18),
}
TRAINING_OVER_LINEAR = (1.2, 1.3, 1.5, 1.7, 2.2, 2.1, 1.1, 1.6)


@pytest.mark.parametrize(("pass_", "dtype"), list(EXPECTED_BOUNDS))
def test_bounds_are_those_of_the_design(pass_: str, dtype: str) -> None:
    value_bytes, rates = H100[dtype]
    bounds = [1e6 * bound_seconds(layer_kernels(shape, pass_), value_bytes, rates) for shape in SHAPES.values()]
    assert bounds == pytest.approx(EXPECTED_BOUNDS[pass_, dtype], rel=0.03)


@pytest.mark.parametrize("dtype", list(H100))
def test_training_bound_over_that_of_linear(dtype: str) -> None:
    value_bytes, rates = H100[dtype]
    ratios = [
        bound_seconds(layer_kernels(shape, "training"), value_bytes, rates)
        / bound_seconds(linear_kernels(shape, "training"), value_bytes, rates)
        for shape in SHAPES.values()
    ]
    assert ratios == pytest.approx(TRAINING_OVER_LINEAR, abs=0.06)


def test_shapes_by_name_and_by_size() -> None:
    assert parse_shapes("speech,2x3x4x5") == [SHAPES["speech"], Shape("2x3x4x5", 2, 3, 4, 5)]
    for text in ("spech", "2x3x4", "0x3x4x5", "2x3x4x5x6", "onm,T=1000"):
        with pytest.raises(ValueError, match=text.rpartition(",")[2]):
            parse_shapes(text)


def test_families_of_growth() -> None:
    assert [shape.T for shape in parse_shapes("growth-T")] == [2**power for power in range(5, 17)]
    assert [shape.H for shape in parse_shapes("growth-H")] == [2**power for power in range(5, 13)]
    assert parse_shapes("onm,growth-H")[1:] == list(GROWTH["H"])
    assert [shape.T for shape in parse_shapes("T=1024")] == [1024]


# Correctness comes before time


class Wrong(RNN):
    """nn.RNN with something done to it."""

    name = "wrong"

    def __init__(self, spoil: Callable[[RNNLayer], None]) -> None:
        self.spoil = spoil

    def build(self, problem: Problem) -> Layer:
        layer = RNNLayer(problem)
        self.spoil(layer)
        return layer


def another_decay(layer: RNNLayer) -> None:
    with torch.no_grad():
        layer.adopted["decay"].mul_(1.01)


def a_missing_bias(layer: RNNLayer) -> None:
    with torch.no_grad():
        layer.adopted["bias_hh"].zero_()


def spoil_output(change: Callable[[Tensor], Tensor]) -> Callable[[RNNLayer], None]:
    def spoil(layer: RNNLayer) -> None:
        layer.register_forward_hook(lambda module, arguments, output: change(output))

    return spoil


def last_step_off(spikes: Tensor) -> Tensor:
    return torch.cat([spikes[:-1], 1 - spikes[-1:]])


def one_step_late(spikes: Tensor) -> Tensor:
    return spikes.roll(1, 0)


def half_the_gradient(layer: RNNLayer) -> None:
    layer.adopted["weight"].register_hook(lambda grad: grad / 2)


def nan_gradient(layer: RNNLayer) -> None:
    layer.adopted["bias_ih"].register_hook(lambda grad: grad * math.nan)


def a_frozen_weight(layer: RNNLayer) -> None:
    layer.adopted["weight"].requires_grad_(False)


WRONG = {
    "another decay": (another_decay, "spikes: .* differ"),
    "a missing bias": (a_missing_bias, "spikes: .* differ"),
    "last step": (spoil_output(last_step_off), "spikes: .* differ"),
    "one step late": (spoil_output(one_step_late), "spikes: .* differ"),
    "doubled": (spoil_output(lambda spikes: 2 * spikes), "neither 0 nor 1"),
    "NaN": (spoil_output(lambda spikes: spikes * math.nan), "neither 0 nor 1"),
    "dtype": (spoil_output(lambda spikes: spikes.double()), "float64"),
    "half the gradient": (half_the_gradient, "gradient of weight"),
    "NaN gradient": (nan_gradient, "gradient of bias_ih"),
    "frozen": (a_frozen_weight, "gradient of weight: got none"),
}


@pytest.mark.parametrize("spoil", list(WRONG))
def test_wrong_rival_is_refused(spoil: str) -> None:
    change, message = WRONG[spoil]
    right, wrong = run_case(RNN(), Wrong(change))
    assert right["status"] == results.OK
    assert wrong["status"] == results.REFUSED
    assert wrong["median_us"] is None
    assert re.search(message, wrong["note"]), wrong["note"]


def test_rival_of_another_shape_is_refused() -> None:
    rows = run_case(Wrong(spoil_output(lambda spikes: spikes[:-1])), pass_="forward")
    assert rows[0]["status"] == results.REFUSED
    assert "got [39, 4, 16]" in rows[0]["note"]


def test_rival_that_raises_has_failed() -> None:
    def refuse(layer: RNNLayer) -> None:
        raise RuntimeError("not on this device")

    right, wrong = run_case(RNN(), Wrong(refuse))
    assert (right["status"], wrong["status"], wrong["note"]) == (
        results.OK,
        results.FAILED,
        "RuntimeError: not on this device",
    )


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float64", "spikes"),
        ("float32", "spikes"),
        ("float32", "dense"),
        ("float16", "spikes"),
        ("bfloat16", "dense"),
    ],
)
def test_honest_implementations_pass(dtype: str, kind: str) -> None:
    for pass_ in ("forward", "training"):
        chosen = [found for found in all_for_the_cpu() if found.name != "torch.compile"]  # its compiling takes seconds
        rows = run_case(*chosen, pass_=pass_, dtype=dtype, kind=kind, learn_decay=True, rounds=1)
        assert {label(row): row["note"] for row in rows if row["status"] not in (results.OK, results.SKIPPED)} == {}


def test_baseline_and_floor_come_first() -> None:
    names = [implementation.label for implementation in all_implementations()]
    assert names[:2] == [BASELINE, FLOOR]
    plans = ("auto", "sequential", "look_back", "project_scan", "recompute")
    assert {f"leakypar fused ({plan})" for plan in plans} < set(names)
    assert len(set(names)) == len(names)


def test_silent_neurons_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*arguments: Any, **options: Any) -> Problem:
        problem = make_problem(*arguments, **options)
        with torch.no_grad():
            problem.parameters.weight.zero_()
        return problem

    monkeypatch.setattr(runner, "make_problem", silent)
    (row,) = run_case(RNN())
    assert row["status"] == results.FAILED
    assert "spike rate" in row["note"]


# Time and memory


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.456, "3.46 µs"),
        (52.0, "52.0 µs"),
        (999.4, "999 µs"),
        (999.6, "1.00 ms"),
        (52000.0, "52.0 ms"),
        (2.5e6, "2.50 s"),
    ],
)
def test_times_are_shown_with_three_digits(value: float, shown: str) -> None:
    assert microseconds(value) == shown


@pytest.mark.parametrize("bad", [math.nan, 0.0])
def test_row_with_an_impossible_time_fails(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenClock(HostClock):
        def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Reading:
            super().time(call, prepare)
            return Reading(bad, 1e-6)

    monkeypatch.setattr(runner, "clock_for", lambda device: BrokenClock())
    rows = run_case(RNN(), Linear())
    assert [row["status"] for row in rows] == [results.FAILED] * 2
    assert all(row["median_us"] is None for row in rows)


def test_calls_are_interleaved_and_inputs_rotated() -> None:
    calls: list[tuple[str, int]] = []

    def watched(base: type[Any]) -> Any:
        class Watched(base):  # type: ignore[misc]
            def build(self, problem: Problem) -> Layer:
                layer: Layer = super().build(problem)
                layer.register_forward_pre_hook(lambda _, inputs: calls.append((self.name, inputs[0].data_ptr())))
                return layer

        return Watched()

    run_case(watched(RNN), watched(Linear), rounds=8)
    rounds = [calls[-16:][index : index + 2] for index in range(0, 16, 2)]
    assert all({name for name, _ in round_} == {BASELINE, FLOOR} for round_ in rounds)
    assert len({round_[0][0] for round_ in rounds}) == 2, "the same implementation always goes first"
    for name in (BASELINE, FLOOR):
        used = {address for round_ in rounds for found, address in round_ if found == name}
        assert len(used) > 1, f"{name} was timed on one input"


def test_peak_memory_counts_what_lives_at_once() -> None:
    def three_with_two_alive() -> None:
        first = torch.ones(1 << 24)
        second = first + 1
        del first
        second * 2

    assert memory.peak_of_this_process(three_with_two_alive) == pytest.approx(2 << 26, rel=0.1)


def test_memory_is_measured_in_a_fresh_process() -> None:
    shape = Shape("wide", 64, 32, 256, 512)
    (linear, rnn), mebi = (
        (
            memory.in_a_fresh_process(memory.peak_on_cpu, each, shape, "float32", "forward", 1, False)
            for each in (Linear(), RNN())
        ),
        2**20,
    )
    outputs = shape.rows * shape.H * 4 / mebi
    assert 0.9 * outputs < linear / mebi < 1.6 * outputs
    assert rnn > linear
    rows = run_case(Linear(), peak=True, rounds=1)
    assert rows[0]["peak_source"] == "resident set of a fresh process"


def test_a_process_that_dies_leaves_its_memory_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*case: object) -> int:
        raise RuntimeError("a process was terminated abruptly")

    monkeypatch.setattr(memory, "in_a_fresh_process", killed)
    (row,) = run_case(Linear(), peak=True, rounds=1)
    assert (row["status"], row["peak_bytes"]) == (results.OK, None)
    assert "not measured: RuntimeError: a process was terminated" in row["peak_source"]


def test_tf32_is_the_same_for_everyone() -> None:
    for allowed in (True, False):
        set_tf32(allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed


def test_what_does_not_fit_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1 << 16)
    rows = run_case(RNN(), Linear())
    assert [row["status"] for row in rows] == [results.SKIPPED] * 2
    assert "GiB" in rows[0]["note"]


def test_a_slow_rival_stops_at_the_limit_and_the_others_go_on() -> None:
    class Slow(Linear):
        name = "slow"

        def build(self, problem: Problem) -> Layer:
            layer = super().build(problem)
            layer.register_forward_hook(lambda *_: time.sleep(0.2))
            return layer

    slow, fast = run_case(Slow(), Linear(), pass_="forward", call_limit=0.1)
    assert (slow["status"], fast["status"]) == (results.SKIPPED, results.OK)
    assert "s a call, over the limit of 0.1 s" in slow["note"]


def test_a_step_by_step_rival_is_not_run_to_find_out_that_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FEWEST_PROBED_STEPS", 2)
    seen: list[int] = []

    def watch(layer: RNNLayer) -> None:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))

    (row,) = run_case(Wrong(watch), call_limit=1e-9)
    assert row["status"] == results.SKIPPED
    assert row["note"].startswith("an estimated")
    assert set(seen) == {2}


def test_fast_implementations_have_more_rounds_than_slow_ones() -> None:
    class Slower(Linear):
        name = "slower"

        def build(self, problem: Problem) -> Layer:
            layer = super().build(problem)
            layer.register_forward_hook(lambda *_: time.sleep(0.1))
            return layer

    slow, fast = run_case(Slower(), Linear(), pass_="forward", rounds=12, case_seconds=1.0)
    assert slow["rounds"] is not None
    assert fast["rounds"] is not None
    assert 3 <= slow["rounds"] < fast["rounds"] <= 12


def test_one_reference_serves_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loops over time, which at 16,384 steps would take longer than what is timed."""
    computed: list[bool] = []

    def counting(problem: Problem, inputs: Any, *, training: bool) -> Any:
        computed.append(training)
        return original(problem, inputs, training=training)

    original = runner.compute_reference
    monkeypatch.setattr(runner, "compute_reference", counting)
    each = settings(RNN(), passes=("forward", "training"), rounds=1)
    rows = [row for case in runner.run(each, describe(CPU), lambda name: None) for row in case]
    assert {(row["pass"], row["status"]) for row in rows} == {("forward", results.OK), ("training", results.OK)}
    assert computed == [True] * (len(rows) // 2)


def test_cases_after_the_time_limit_are_skipped() -> None:
    (rows,) = runner.run(settings(RNN(), time_limit=0.0), describe(CPU), lambda name: None)
    assert [(row["status"], row["note"]) for row in rows] == [(results.SKIPPED, "the run's time limit was reached")]


def test_what_is_left_of_a_case_after_the_time_limit_is_skipped() -> None:
    rows = run_case(RNN(), Linear(), deadline=0.0)
    assert [(row["status"], row["note"]) for row in rows] == [(results.SKIPPED, results.OUT_OF_TIME)] * 2


# Files


def test_csv_round_trip(tmp_path: Path) -> None:
    rows = [make_row(), make_row(status=results.SKIPPED, median_us=None, note='needs "much", more, memory')]
    path = tmp_path / "folder" / "rows.csv"
    writer = Writer(path)
    writer.write(rows[:1])
    writer.write(rows[1:])
    found = read(path)
    assert list(found.label) == ["leakypar fused (auto)"] * 2
    assert list(found.note) == ["", 'needs "much", more, memory']
    assert found.median_us.isna().tolist() == [False, True]
    for row, back in zip(rows, found.to_dict("records"), strict=True):
        assert {name: value for name, value in row.items() if value is not None}.items() <= back.items()


def test_what_a_run_writes_does_not_make_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    code, csv_file = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "cpu.csv"
    csv_file.parent.mkdir(parents=True)
    for file in (code, csv_file):
        file.write_text("before")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    csv_file.write_text("after")
    clean = describe(CPU).commit
    assert re.fullmatch("[0-9a-f]{12}", clean)
    code.write_text("after")
    assert describe(CPU).commit == f"{clean}-dirty"


def test_csv_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column .*median_us"):
        read(path)
    Writer(path).write([make_row()])
    path.write_text(path.read_text().replace(",250,", ",many,"))
    with pytest.raises(ValueError, match=r"rows.csv: column T"):
        read(path)


README = """# Title

before

<!-- benchmark:cpu input == "spikes" and threads == 2 -->
old numbers
<!-- /benchmark:cpu -->

between

<!-- benchmark:gpu -->
<!-- /benchmark:gpu -->

<!-- memory:cpu -->
<!-- /memory:cpu -->

after
"""


def test_tables(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    training = {"pass_": "training", "status": results.SKIPPED, "peak_source": "a source"}
    rows = [
        make_row(implementation="nn.RNN", plan="", median_us=4010.5),
        make_row(implementation="nn.Linear", plan="", median_us=822.67),
        make_row(implementation="snntorch LeakyParallel", plan="", median_us=3900.0),
        make_row(implementation="torch.compile", plan="", median_us=2600.0),
        make_row(implementation="spikingjelly", plan="LIF", median_us=2500.0, function="resets"),
        make_row(plan="recompute", median_us=900.0),
        make_row(),
        make_row(threads=1),
        make_row(input="dense"),
        make_row(shape="square", status=results.SKIPPED, note="an estimated 74 s a call"),
        make_row(implementation="nn.RNN", plan="", peak_bytes=4 << 20, **training),
        make_row(peak_bytes=3 << 20, **training),
    ]
    Writer(folder / "cpu.csv").write(rows)
    Writer(folder / "cpu-quick.csv").write([make_row(shape="quick")])
    Writer(folder / "cpu-partial.csv").write([make_row(shape="partial")])
    Writer(folder / "cpu-growth.csv").write([make_row(shape="T=32")])
    readme = tmp_path / "README.md"
    readme.write_text(README)

    assert table.main([str(readme), "--results", str(folder)]) == 0
    once = readme.read_text()
    line = (
        "| speech (250, 256, 700, 512) | 1.23 ms ± 5.50 µs | 3.25× | 1.50× ± 0.12 | 80% "
        "| 4.01 ms | 3.90 ms | 2.50 ms spikingjelly (LIF)* | 823 µs |"
    )
    assert line in once.splitlines()
    assert "`, dtype float32, pass forward, input 20% spikes, threads 2, backend fused. Medians ±" in once
    assert once.count("| speech (250") == 1, "the query was not followed"
    assert "\\* computes a near relative: spikingjelly (LIF): resets." in once.splitlines()
    assert "Not run: square float32 spikes forward (an estimated 74 s a call)" in once
    assert "<!-- benchmark:gpu -->\n\nnot yet measured\n\n<!-- /benchmark:gpu -->" in once
    assert "| speech | float32 |  | 4.0 | 3.0 |  | 0.75 |  |" in once.splitlines()
    assert "MiB by: a source." in once
    assert "No rival that was timed is faster than leakypar in any of these rows." in once.splitlines()
    assert "Of nn.Linear, geometric means: float32 forward spikes, threads 2: 1.50 (at most 1.50)." in once
    for gone in ("old numbers", "partial", "T=32", "quick"):
        assert gone not in once
    for kept in ("# Title", "before", "between", "after"):
        assert kept in once.splitlines()

    table.main([str(readme), "--results", str(folder)])
    assert readme.read_text() == once

    Writer(folder / "gpu.csv").write([make_row(device_type="cuda", device="A GPU", cuda="13.0", tf32="on")])
    table.main([str(readme), "--results", str(folder)])
    assert "not yet measured" not in readme.read_text()
    assert "float32 (TF32)" in readme.read_text()


@pytest.mark.parametrize("broken", [README.replace("<!-- /benchmark:gpu -->", ""), "<!-- /memory:cpu -->" + README])
def test_a_page_without_its_markers(broken: str) -> None:
    with pytest.raises(ValueError, match="one of a pair"):
        table.rewrite(broken, [])


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.name)
def test_the_pages_have_their_markers(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert table.BLOCK.findall(text)
    assert "not yet measured" in table.rewrite(text, [])


TIMES_OVER_RATES = {
    "auto": (0.25, 0.5, 1.0),
    "dense": (1.0, 1.0, 1.0),
    "events": (0.25, 0.5, 2.0),
    "recompute": (0.5, 0.75, 2.5),
}
OVER_RATES = [
    make_row(plan=plan, pass_=pass_, spike_rate=rate, time_over_linear=time, input=f"{100 * rate:g}%")
    for pass_ in ("forward", "training")
    for plan, times in TIMES_OVER_RATES.items()
    for rate, time in zip((0.01, 0.05, 0.2), times, strict=True)
]
OVER_STEPS = [
    make_row(shape="stack", pass_="training", T=T, peak_bytes=T * size << 20, peak_source="a source", **which)
    for size, which in (
        (4, {"implementation": "snntorch LeakyParallel", "plan": ""}),
        (2, {"plan": "dense", "median_us": 600.0}),
        (1, {"plan": "recompute", "note": "layers fire"}),
    )
    for T in (512, 1024, 2048)
]


@pytest.mark.parametrize(
    ("name", "rows", "images"),
    [
        (
            "cpu-growth",
            [make_row(shape=f"{size}={value}", **{size: value}) for size in "TH" for value in (32, 64)],
            ["cpu-growth-H.png", "cpu-growth-T.png"],
        ),
        ("cpu-rates", OVER_RATES, ["cpu-rates.png"]),
        ("cpu-memory", OVER_STEPS, ["cpu-memory.png"]),
    ],
)
def test_plots(name: str, rows: list[Row], images: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"{name}.csv"
    Writer(path).write(rows)
    assert plot.main([str(path)]) == 0
    assert sorted(image.name for image in tmp_path.glob("*.png")) == images
    assert all((tmp_path / image).stat().st_size > 5000 for image in images)


def page_of(block: str, folder: Path, name: str, rows: list[Row]) -> list[str]:
    """The lines of a page that has this block alone."""
    Writer(folder / name).write(rows)
    page = folder / "page.md"
    page.write_text(f"<!-- {block}:cpu -->\n<!-- /{block}:cpu -->\n")
    table.main([str(page), "--results", str(folder)])
    return page.read_text().splitlines()


def test_a_rival_that_is_faster_is_named(tmp_path: Path) -> None:
    rows = [make_row(), make_row(implementation="nn.Linear", plan="", median_us=500.0)]
    rows.append(make_row(implementation="torch.compile", plan="", median_us=1000.0))
    lines = page_of("benchmark", tmp_path, "cpu.csv", rows)
    assert "A rival is faster: speech float32 spikes forward, threads 2: torch.compile 1.00 ms." in lines
    assert not any("No rival" in line for line in lines)
    assert not any("rival" in line for line in page_of("benchmark", tmp_path, "cpu.csv", rows[:2])), "none was timed"


def test_the_table_of_rates_says_where_events_meet_the_dense_product(tmp_path: Path) -> None:
    lines = page_of("rates", tmp_path, "cpu-rates.csv", OVER_RATES)
    # Half at 5% and twice at 20%: as much at the geometric mean of the two, 10%.
    assert "| speech | 2 | training | 10% | 0.50 | 1.00 | 0.75 | 2.50 |" in lines


def test_the_table_of_longest_sequences_interpolates(tmp_path: Path) -> None:
    """4 GiB: snntorch's 4 MiB a step reach them at 1024, 2 MiB at 2048; 1 MiB does not, in what was measured."""
    lines = page_of("longest", tmp_path, "cpu-memory.csv", OVER_STEPS)
    for line in (
        "| snntorch LeakyParallel | 1024 | 1.0× | 4.00 | 1.0× | 2.06 |  |",
        "| leakypar fused (dense) | 2048 | 2.0× | 2.00 | 2.0× | 1.00 |  |",
        "| leakypar fused (recompute) | > 2048 |  | 1.00 | 4.0× | 2.06 | layers fire |",
    ):
        assert line in lines


def test_the_table_of_events_has_geometric_means(tmp_path: Path) -> None:
    rows = [
        make_row(shape=shape, pass_=pass_, input="5%", spike_rate=0.05, time_over_linear=time)
        for shape, times in {"onm": (0.25, 0.5), "long": (1.0, 2.0)}.items()
        for pass_, time in zip(("forward", "first-layer"), times, strict=True)
    ]
    lines = page_of("events", tmp_path, "cpu-events.csv", rows)
    assert lines[-6:-2] == [
        "| --- | --: | --: | --: |",
        "| onm | 2 | 0.25 | 0.50 |",
        "| long | 2 | 1.00 | 2.00 |",
        "| geometric mean | 2 | 0.50 | 1.00 |",
    ]


def test_nothing_to_plot(tmp_path: Path) -> None:
    skipped = make_row(
        status=results.SKIPPED, median_us=None, speedup_over_rnn=None, share_of_bound=None, peak_bytes=None
    )
    Writer(tmp_path / "cpu-growth.csv").write([skipped])
    with pytest.raises(ValueError, match="none that was timed"):
        plot.draw(read(tmp_path / "cpu-growth.csv"), tmp_path / "cpu-growth.csv")


# The program


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile's own internals
@pytest.mark.slow
def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.csv"
    arguments = ["--device", "cpu", "--quick", "--shapes", "12x3x20x16", "--dtype", "float32", "--output", str(path)]
    assert command_line.main([*arguments, "--case-seconds", "0.1"]) == 0
    rows = read(path)
    everyone = [implementation for implementation in all_for_the_cpu() if not implementation.optional]
    for pass_ in ("forward", "training"):
        labels = [implementation.label for implementation in everyone if pass_ in implementation.passes]
        assert list(rows.label[rows["pass"] == pass_]) == labels
    skipped, timed = rows[rows.status == results.SKIPPED], rows[rows.status == results.OK]
    assert skipped.note.str.contains("built|installed").all()
    assert len(skipped) + len(timed) == len(rows)
    assert (timed.rounds >= runner.FEWEST_ROUNDS).all()
    measured = timed.drop(columns=["spike_mismatch", "gradient_error"])
    assert measured.notna().all().all(), measured.columns[measured.isna().any()]
    same = timed[timed.function == "same"]
    assert same.spike_mismatch.notna().all()
    assert (same.gradient_error.isna() == (same["pass"] == "forward")).all()
    assert timed.copy_bandwidth.nunique() == 1
    assert (timed.speedup_over_rnn[timed.label == BASELINE] == 1).all()
    assert "nn.Linear" in capsys.readouterr().out


def test_a_refused_rival_fails_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "all_implementations", lambda: [RNN(), Wrong(another_decay)])
    path = tmp_path / "out.csv"
    shape = ["--device", "cpu", "--shapes", "40x4x24x16", "--dtype", "float32", "--rounds", "1", "--threads", "1"]
    assert command_line.main([*shape, "--inputs", "dense", "--passes", "forward", "--output", str(path)]) == 1
    assert list(read(path).status) == [results.OK, results.REFUSED]
    assert "refused: wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float8"], "float8"),
        (["--shapes", "spech"], "spech"),
        (["--passes", "backward"], "backward"),
        (["--rounds", "0"], "more than 0"),
        (["--device", "cpu", "--implementations", "cuDNN"], "expected some of: nn.RNN"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_growth_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = (Shape("T=8", 8, 2, 16, 16), Shape("T=16", 16, 2, 16, 16))
    monkeypatch.setitem(GROWTH, "T", family)
    monkeypatch.setattr(command_line, "RESULTS", tmp_path)
    chosen = ["--growth", "--shapes", "growth-T", "--implementations", "nn.RNN,leakypar fused"]
    chosen += ["--rounds", "1", "--no-peak", "--threads", "1,2"]
    assert command_line.main(["--device", "cpu", *chosen]) == 0
    rows = read(tmp_path / "cpu-growth-partial.csv")
    assert list(rows["shape"].unique()) == ["T=8", "T=16"]
    assert sorted(rows.threads.unique()) == [1, 2]
    assert {*zip(rows.dtype, rows.input, strict=True)} == {("float32", "spikes")}


def test_a_run_over_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "RESULTS", tmp_path)
    chosen = ["--shapes", "40x8x64x64", "--inputs", "5%,50%", "--rounds", "1", "--threads", "1"]
    assert command_line.main(["--device", "cpu", "--rates", *chosen]) == 0
    rows = read(tmp_path / "cpu-rates-partial.csv")
    assert set(rows.label) == {FLOOR, table.OURS, table.DENSE, table.EVENTS, table.RECOMPUTE}
    assert set(rows["pass"]) == {"forward", "first-layer", "training"}
    assert set(rows[rows.label == table.RECOMPUTE]["pass"]) == {"first-layer", "training"}
    assert set(rows.spike_rate) == {0.05, 0.5}
    assert rows.time_over_linear.notna().all()
    assert rows.peak_bytes.isna().all()


def test_the_memory_of_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends where it passes the limit: nn.RNN before ours, which keep less."""
    monkeypatch.setattr(stack, "SHAPE", Shape("stack", 64, 4, 256, 256))
    monkeypatch.setattr(stack, "LIMIT", 20 << 20)
    path = tmp_path / "cpu-memory.csv"
    measured = f"nn.RNN,{table.DENSE},{table.RECOMPUTE},spikingjelly (LIF checkpoint)"
    chosen = ["--implementations", measured, "--threads", "1", "--rounds", "1"]
    assert command_line.main(["--memory", *chosen, "--output", str(path)]) == 0
    rows = read(path)
    timed = rows[rows.status == results.OK]
    ends = timed.groupby("label")["T"].max()
    assert ends[BASELINE] <= ends[table.DENSE] <= ends[table.RECOMPUTE]
    assert ends[BASELINE] < ends[table.RECOMPUTE]
    for name in (BASELINE, table.DENSE, table.RECOMPUTE):
        peaks = timed[timed.label == name].peak_bytes
        assert (peaks.iloc[:-1] <= stack.LIMIT).all()
        assert peaks.iloc[-1] > stack.LIMIT
    fired = timed[(timed.label == table.DENSE) & (timed["T"] >= stack.WARM_UP)].note.iloc[0]
    assert all(4 < float(rate) < 6 for rate in re.findall(r"([\d.]+)%", fired))
    assert len(re.findall("%", fired)) == stack.DEPTH


def test_the_price_of_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_time, "CALLS", 1)
    path = tmp_path / "cpu-host.csv"
    host_time.main(["--rounds", "2", "--output", str(path)])
    text = table.rewrite("<!-- host:cpu -->\n<!-- /host:cpu -->", [(results.kind_of(path), read(path))])
    for call, of in (("functional", "one layer"), ("forward", "one layer"), ("training", "10 layers")):
        assert re.search(rf"\| {call} \| {of}, .* \| [\d.]+ ± [\d.]+ \|", text)


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.csv"
    chosen = ["--device", "cpu", "--shapes", "8x2x16x16,16x2x16x16", "--dtype", "float32", "--inputs", "spikes"]
    chosen += ["--implementations", "nn.RNN", "--rounds", "1", "--threads", "1", "--no-peak"]
    arguments = [*chosen, "--output", str(path)]
    assert command_line.main([*arguments, "--passes", "forward"]) == 0
    rows = results.finished(path)
    Writer(path).write([rows[0], rows[1] | {"status": results.SKIPPED, "median_us": "", "note": results.OUT_OF_TIME}])
    assert command_line.main([*arguments, "--resume"]) == 0
    resumed = results.finished(path)
    assert resumed[0] == rows[0]
    assert [(row["shape"], row["pass"]) for row in resumed[1:]] == [
        ("8x2x16x16", "training"),
        ("16x2x16x16", "forward"),
        ("16x2x16x16", "training"),
    ]
    assert {row["status"] for row in resumed} == {results.OK}
    Writer(path).write([rows[0] | {"python": "2.7"}])
    with pytest.raises(SystemExit):
        command_line.main([*arguments, "--resume"])
    assert "has python 2.7, expected" in capsys.readouterr().err


def test_it_runs_beside_torch_alone() -> None:
    """A machine with a GPU often has torch, pytest and ninja, and no network."""
    blocked = ("pandas", "matplotlib", "rich", "tqdm", "snntorch", "numpy.testing")
    hide = f"import sys; sys.modules.update(dict.fromkeys({blocked}))"
    run = "from benchmarks.__main__ import main; raise SystemExit(main(sys.argv[1:]))"
    options = "--device cpu --shapes 8x2x16x16 --implementations nn.RNN,nn.Linear --rounds 1 --dtype float32 --no-peak"
    command = [sys.executable, "-c", f"{hide}; {run}", *options.split(), "--output", "/dev/null"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
