"""leakypar.tune: what is measured, what is chosen, and what later calls and processes make of it."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import leakypar
from benchmarks import tuning as benchmark
from benchmarks.tuning import main, random_shapes
from leakypar import LeakyParallel, Plan, launch_plan, measuring, ops, tuning, tuning_file
from leakypar.build_info import extension
from leakypar.measuring import HostClock, Reading
from tools.predictions import H100

from .implementations import emulation, fused
from .layers import without_kernels
from .problems import draw
from .test_implementations import check_gradients, check_outputs
from .test_plan import SHAPES

pytestmark = without_kernels

T, N, C, H = 3000, 2, 8, 400  # of which a quarter, half and all of a CPU's cache hold other chunks
CPU_FACTS = launch_plan.DeviceFacts(0, 4 << 20)


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty file, and nothing remembered before or after."""
    path = tmp_path / "cache" / "tuning.json"
    monkeypatch.setenv(tuning_file.FILE_VARIABLE, str(path))
    monkeypatch.setattr(tuning, "_seen", set())
    monkeypatch.setattr(measuring, "ROTATED_BYTES", 1)
    tuning._keep_the_models.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which wait for nobody on a machine that does other things too
    yield path
    torch.set_num_threads(threads)
    extension().forget()


class Injected(HostClock):
    """A clock on which a call takes what a function of its plan says, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[str, int], float]) -> None:
        self.seconds = seconds
        for name in ("forward", "backward"):
            monkeypatch.setattr(ops, name, self._noting(name, getattr(ops, name)))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            request = arguments[-2].request  # settings, outputs
            self.last = name, (request.gemm_chunk if name == "forward" else request.backward_gemm_chunk)
            return call(*arguments)

        return noting

    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Reading:
        call()
        direction, chunk = self.last
        assert chunk is not None
        seconds = self.seconds(direction, chunk)
        return Reading(seconds, seconds)


def rows_asked_for(call: Callable[[], object]) -> set[int]:
    """The memory that a call asks for, in rows `[N, H]` of float32."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return {event.nbytes() // (4 * N * H) for event in events if event.name() == "[memory]" and event.nbytes() > 0}


def test_the_fastest_is_chosen_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = leakypar.plan(T, N, C, H, device="cpu")
    assert chosen.gemm_chunk == chosen.backward_gemm_chunk
    fast = {"forward": T, "backward": 1000}
    clock = Injected(monkeypatch, lambda direction, chunk: 1e-3 if chunk == fast[direction] else 2e-3)
    layer, x = LeakyParallel(C, H, backend="fused"), torch.randn(T, N, C)
    spikes = layer(x)
    assert 1 in rows_asked_for(lambda: layer(x))  # the membrane between two chunks
    assert chosen.backward_gemm_chunk in rows_asked_for(spikes.sum().backward)  # the gradient of a chunk's projection
    tuned = leakypar.tune(T, N, C, H, device="cpu", seconds=0.01, clock=clock)
    expected = chosen._replace(gemm_chunk=fast["forward"], backward_gemm_chunk=fast["backward"])
    assert tuned.plan == leakypar.plan(T, N, C, H, device="cpu") == expected
    spikes = layer(x)
    assert 1 not in rows_asked_for(lambda: layer(x))
    assert fast["backward"] in rows_asked_for(spikes.sum().backward)
    # A chunk holds as many bytes for sizes that are like these, and others have the model's.
    near = leakypar.plan(T + 1000, N, C, H, device="cpu")
    assert (near.gemm_chunk, near.backward_gemm_chunk) == (T + 1000, 1000)
    far = extension().make_plan(T=4 * T, N=N, C=C, H=H, precision="float32", facts=CPU_FACTS, measured=False)
    assert tuple(leakypar.plan(4 * T, N, C, H, device="cpu")) == far
    best = [each for each in tuned.candidates if each.chunk == fast[each.direction]]
    assert [(each.direction, each.gain, each.microseconds) for each in best] == [
        ("forward", 2.0, 1000.0),
        ("backward", 2.0, 1000.0),
    ]


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.02])
def test_the_models_choice_stays_where_no_other_is_clearly_faster(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    chosen = leakypar.plan(T, N, C, H, device="cpu")
    of_model = {"forward": chosen.gemm_chunk, "backward": chosen.backward_gemm_chunk}
    clock = Injected(monkeypatch, lambda direction, chunk: gain if chunk == of_model[direction] else 1.0)
    layer = LeakyParallel(C, H, backend="fused")
    tuned = leakypar.tune_layer(layer, torch.randn(T, N, C), seconds=0.01, clock=clock)
    assert tuned.plan == chosen
    assert [each.direction for each in tuned.candidates if each.is_model] == ["forward", "backward"]


def test_one_disturbed_median_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's choice slow in three rounds of four, by what else runs, and as fast as the others in one."""
    chosen, times = leakypar.plan(T, N, C, H, device="cpu"), itertools.cycle([3.0, 3.0, 3.0, 1.0])
    clock = Injected(monkeypatch, lambda direction, chunk: next(times) if chunk == chosen.gemm_chunk else 1.0)
    tuned = leakypar.tune(T, N, C, H, device="cpu", training=False, seconds=0.01, clock=clock)
    assert tuned.plan == chosen


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("facts", [CPU_FACTS, H100], ids=["cpu", "h100"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float64"])
def test_the_models_choice_is_a_candidate(name: str, facts: Any, precision: str) -> None:
    sizes: Any = {**dict(zip("TNCH", SHAPES[name], strict=True)), "precision": precision, "facts": facts}
    forward, backward, gemm_chunk, backward_gemm_chunk, tiles, *_ = extension().make_plan(**sizes)
    of_forward = [(each[0], *each[2:]) for each in extension().candidates(**sizes, direction="forward")]
    assert (forward, gemm_chunk, tiles) in of_forward
    of_backward = [(each[0], each[2]) for each in extension().candidates(**sizes, direction="backward")]
    assert (backward, backward_gemm_chunk) in of_backward
    assert len(set(of_forward)) == len(of_forward)
    assert len(of_forward) + len(of_backward) <= 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_candidate_of_a_gpu_computes_what_is_specified(dtype: torch.dtype) -> None:
    facts = H100._replace(cache_bytes=1 << 15)
    T, N, C, H = 150, 8, 3, 4
    sizes: Any = {"T": T, "N": N, "C": C, "H": H, "precision": str(dtype)[6:], "facts": facts}
    forwards, backwards = (extension().candidates(**sizes, direction=each) for each in ("forward", "backward"))
    assert {each[0] for each in forwards} >= {"sequential", "look_back"}
    assert (dtype == torch.bfloat16) == any(each[3] for each in forwards)
    problem = draw(T, N, C, H, dtype=dtype)
    with emulation():
        for index in range(max(len(forwards), len(backwards))):
            forward, backward = forwards[index % len(forwards)], backwards[index % len(backwards)]
            tiles = None if forward[3] is None else leakypar.Tiles(*forward[3])
            scan: Any = backward[0]
            plan: Any = Plan(forward[0], scan, forward[2], backward[2], tiles)
            check_outputs(fused(str(plan), "cpu", plan), problem, dtype)
            check_gradients(fused(str(plan), "cpu", plan), problem, dtype)


def test_the_file_serves_a_later_process(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    clock = Injected(monkeypatch, lambda direction, chunk: 1.0 / chunk)
    tuned = leakypar.tune(T, N, C, H, device="cpu", seconds=0.01, clock=clock)
    assert tuned.plan.gemm_chunk == T
    asks = f"import leakypar; print(leakypar.plan({T}, {N}, {C}, {H}, device='cpu').gemm_chunk)"
    found = subprocess.run([sys.executable, "-c", asks], check=True, capture_output=True, text=True)
    assert int(found.stdout) == T
    for choice, is_known in (("off", False), (str(file), True)):
        extension().forget()
        monkeypatch.setenv(tuning_file.FILE_VARIABLE, choice)
        tuning_file.load()
        assert (leakypar.plan(T, N, C, H, device="cpu") == tuned.plan) == is_known


def entry(**changes: Any) -> dict[str, Any]:
    """The content of a file of one entry."""
    whole = {"direction": "forward", "method": "sequential", "chunk": T, "chunk_bytes": 1 << 62, "tiles": None}
    of_times = {"microseconds": 1.0, "gain": 2.0, "is_model": False}
    here = {"device": tuning_file._processor(), "facts": list(CPU_FACTS), "leakypar": leakypar.__version__}
    sizes = {"T": T, "N": N, "C": C, "H": H, "precision": "float32", "torch": torch.__version__}
    made = {**here, **sizes, **whole, **of_times, **changes}
    return {"format": tuning_file.FORMAT, "plans": {tuning_file._key(made): made}}


def load(path: Path, content: str) -> int:
    """The chunk of a plan after a file was read."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    tuning_file.load()
    return leakypar.plan(T, N, C, H, device="cpu").gemm_chunk


def test_an_entry_of_another_machine_or_version_is_left_alone(file: Path) -> None:
    assert load(file, json.dumps(entry())) == T
    extension().forget()
    for changes in ({"device": "another"}, {"leakypar": "0"}, {"torch": "1.0"}, {"facts": list(H100)}):
        assert load(file, json.dumps(entry(**changes))) < T


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(entry())[:-20],
        "",
        "[]",
        json.dumps({**entry(), "format": 2}),
        json.dumps({**entry(), "plans": {"a key": entry()["plans"].popitem()[1]}}),
        json.dumps(entry(method="fastest")),
        json.dumps(entry(chunk_bytes="all")),
        json.dumps(entry(tiles=[64, 1])),
        json.dumps(entry(direction="sideways")),
        json.dumps(entry(precision="float8")),
        json.dumps(entry(method="project_scan")),
    ],
    ids=["torn", "empty", "list", "format", "key", "method", "bytes", "tiles", "direction", "precision", "device"],
)
def test_a_file_that_is_wrong_is_ignored_with_one_warning(content: str, file: Path) -> None:
    with pytest.warns(UserWarning, match=r"tuning\.json is ignored: \w+Error: ") as record:
        chunks = [load(file, content) for _ in range(2)]
    assert len(record) == 1
    assert max(chunks) < T
    tuned = leakypar.tune(4, 2, 3, 5, device="cpu", seconds=0.001)  # which writes a good one in its place
    assert len(json.loads(file.read_text())["plans"]) == len({each.direction for each in tuned.candidates})


def _tune(sizes: list[int], start: Any) -> None:
    torch.set_num_threads(1)
    start.wait(60)
    for size in sizes:
        leakypar.tune(4, 2, 3, size, device="cpu", seconds=0.001)


def test_two_processes_tune_one_file_at_once(file: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=_tune, args=(list(range(first, 40, 2)), start)) for first in (2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    kept = json.loads(file.read_text())["plans"].values()
    assert sorted((each["H"], each["direction"]) for each in kept) == [
        (size, direction) for size in range(2, 40) for direction in ("backward", "forward")
    ]


def test_unseen_sizes_are_tuned_at_their_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, bool]] = []
    original = tuning._measure

    def measuring(inputs: Any, copies: Any, training: bool, *others: Any) -> Any:
        measured.append((inputs.x.shape[0], training))
        return original(inputs, copies, training, 0.001, None)

    monkeypatch.setattr(tuning, "_measure", measuring)
    layer = LeakyParallel(C, 5, beta=0.9, backend="fused")
    layer(torch.randn(9, 2, C))
    assert not measured
    monkeypatch.setattr(leakypar, "autotune", True)
    for T in (9, 10, 17):  # the first two are alike
        for _ in range(2):
            copy.deepcopy(layer)(torch.randn(T, 2, C))
    assert measured == [(9, True), (17, True)]
    with torch.no_grad():
        layer(torch.randn(9, 2, C))  # a forward that is known
        layer(torch.randn(40, 2, C))
    assert measured[2:] == [(40, False)]
    layer(torch.randn(0, 2, C))
    LeakyParallel(C, 5, backend="fused", plan="sequential")(torch.randn(70, 2, C))
    LeakyParallel(C, 5, backend="fused", recompute=True)(torch.randn(70, 2, C))
    LeakyParallel(C, 5, backend="rnn")(torch.randn(70, 2, C))
    torch.compile(layer, backend="eager", fullgraph=True)(torch.randn(140, 2, C))
    torch.func.vmap(layer)(torch.randn(3, 140, 2, C))
    assert len(measured) == 3
    results = [layer(torch.ones(9, 2, C))]
    monkeypatch.setattr(leakypar, "autotune", False)
    assert torch.equal(layer(torch.ones(9, 2, C)), results[0])


def test_where_a_plan_must_stay_nothing_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_measure", lambda *arguments: pytest.fail("measured"))
    monkeypatch.setattr(leakypar, "autotune", True)
    layer = LeakyParallel(C, 5, backend="fused")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.warns(UserWarning, match=r"nothing is measured under torch\.use_deterministic_algorithms"):
            layer(torch.randn(9, 2, C))
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(tuning, "_forked", True)
    with pytest.warns(UserWarning, match="nothing is measured in a forked process"):
        layer(torch.randn(9, 2, C))


@pytest.mark.parametrize("capturing", [False, True])
def test_nothing_is_measured_into_a_cuda_graph(capturing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    of_a_gpu: Any = SimpleNamespace(is_cuda=True)
    assert tuning._why_not(of_a_gpu) == ("while a CUDA graph is captured" if capturing else "")
    assert not tuning._why_not(torch.ones(1))


def test_a_forked_process_knows_that_it_is_one() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=lambda: queue.put(tuning._forked))
    worker.start()
    assert queue.get(timeout=60)
    worker.join(60)
    assert not tuning._forked


def test_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Injected(monkeypatch, lambda direction, chunk: 1.0 / chunk)
    tuned = leakypar.tune(T, N, C, H, device="cpu", training=False, seconds=0.01, clock=clock)
    lines = str(tuned).splitlines()
    assert lines[0].split() == ["direction", "method", "chunk", "tiles", "µs", "gain"]
    assert lines[1].split()[:3] == ["forward", "sequential", str(T)]
    assert sum(line.endswith("model's choice") for line in lines) == 1
    rich = pytest.importorskip("rich.console", reason="rich is not installed")
    console = rich.Console(width=120, record=True, file=io.StringIO())
    console.print(tuned)
    assert "model's choice" in console.export_text()


def test_wrong_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LeakyParallel(3, 2, backend="fused")
    for message, call in (
        ("T must be at least 1 to be measured, got 0", lambda: leakypar.tune(0, 1, 1, 1, device="cpu")),
        ("seconds must be positive, got 0", lambda: leakypar.tune(1, 1, 1, 1, device="cpu", seconds=0)),
        ("x must not be empty", lambda: leakypar.tune_layer(layer, torch.empty(0, 1, 3))),
        ("a dense recurrent matrix", lambda: leakypar.tune_layer(LeakyParallel(3, 2, weight_hh_enable=True), None)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="layer must be a LeakyParallel, got Linear"):
        leakypar.tune_layer(torch.nn.Linear(2, 2), torch.ones(1, 1, 2))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not for 'meta'"):
        leakypar.tune(1, 1, 1, 1, device="meta")
    monkeypatch.setenv(tuning.SWITCH_VARIABLE, "yes")
    with pytest.raises(ValueError, match="LEAKYPAR_AUTOTUNE must be 0 or 1, got 'yes'"):
        tuning.switched_on_by_environment()


def test_the_table_of_the_models_choice_beside_the_measured_best(tmp_path: Path, file: Path) -> None:
    table = pytest.importorskip("benchmarks.table", reason="needs pandas")
    path, page = tmp_path / "cpu-tuning.csv", tmp_path / "page.md"
    options = ["--device", "cpu", "--threads", str(torch.get_num_threads()), "--time-limit", "0.1"]
    options += [
        "--random",
        "0",
        "--shapes",
        "1500x1x3x700,4x2x3x5",
        "--dtypes",
        "float32,float64",
        "--output",
        str(path),
    ]
    assert main(options) == 0
    with path.open() as rows:
        kept = list(csv.DictReader(rows))
    assert {(row["T"], row["dtype"], row["pass"]) for row in kept if row["is_model"] == "True"} == set(
        itertools.product(("1500", "4"), ("float32", "float64"), ("forward", "backward"))
    )
    assert len(json.loads(file.read_text())["plans"]) == 8
    page.write_text("<!-- tuning:cpu -->\n<!-- /tuning:cpu -->\n")
    assert table.main([str(page), "--results", str(tmp_path)]) == 0
    assert re.search(r"^\| float64 \| 4 \| [0-4] \| ", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("narrower", [["--shapes", "4x2x3x5"], ["--dtypes", "float32"], ["--random", "1"]])
def test_a_narrower_run_keeps_the_file_of_the_table(
    narrower: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "tune", lambda *sizes, **options: pytest.fail("its file is open by now"))
    (tmp_path / "cpu-tuning.csv").write_text("the table's")
    with pytest.raises(pytest.fail.Exception):
        main(["--device", "cpu", "--threads", "1", *narrower])
    assert (tmp_path / "cpu-tuning.csv").read_text() == "the table's"
    assert (tmp_path / "cpu-tuning-partial.csv").exists()


def test_the_table_counts_what_the_model_missed(tmp_path: Path) -> None:
    table = pytest.importorskip("benchmarks.table", reason="needs pandas")
    import pandas as pd

    case = {"dtype": "float32", "threads": 1, "commit": "c", "device_type": "cpu", "device": "d", "torch": "t"}
    best = [("onm", "forward", 1.0, True), ("onm", "backward", 1.21, False), ("long", "forward", 1.0, True)]
    rows = [{"shape": shape, "pass": pass_, "gain": gain, "is_model": model} for shape, pass_, gain, model in best]
    rows.insert(2, {"shape": "onm", "pass": "backward", "gain": 1.0, "is_model": True})  # second to the best
    text = table.tuning(pd.DataFrame([row | case | {"leakypar": "0.1.0"} for row in rows]))
    assert text.endswith("| float32 | 3 | 2 | 1.21 | 1.066 |")


def test_random_shapes_repeat_and_are_of_a_size_that_is_measured_soon() -> None:
    shapes = random_shapes(20)
    assert shapes == random_shapes(20)
    assert len({(each.T, each.N, each.C, each.H) for each in shapes}) == 20
    assert all(each.T * each.N * max(each.C, each.H) <= 1 << 25 for each in shapes)
