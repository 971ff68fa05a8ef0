"""The run on a GPU, `benchmarks/gpu.sh`, with commands and tools that stand in for the real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from leakypar import ops

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
H100 = "NVIDIA H100 80GB HBM3\t9\t0"

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("bash", "timeout"))), reason="needs bash and timeout")


def steps(out: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Runs such steps by the script's own functions."""
    script = "\n".join([f"source {SCRIPT}", f"begin {out} 'A GPU'", *lines, "finish"])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)


def logs(out: Path) -> dict[str, str]:
    with tarfile.open(out / "logs.tar.gz") as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".log"))
        return {Path(name).stem: archive.extractfile(name).read().decode() for name in names}


def test_no_step_hides_the_next(tmp_path: Path) -> None:
    run = steps(
        tmp_path,
        "step slow 1 sleep 60",
        "step good 9 echo fine",
        "step bad 9 bash -c 'echo first; echo what went wrong >&2; exit 3'",
        "step absent 9 no-such-program-anywhere",
        "step machine 9 no-such-program-anywhere",
        "step last 9 SETTING=seen bash -c 'echo $SETTING'",
    )
    assert run.returncode == 1
    summary = (tmp_path / "summary.txt").read_text()
    assert run.stdout == summary
    lines = summary.splitlines()
    statuses = ["timed out", "passed", "failed", "failed", "skipped", "passed"]
    assert [line[17:26].strip() for line in lines[1:-1]] == statuses
    assert "stopped at its limit of 1 s" in lines[1]
    assert "exit code 3; last line: what went wrong" in lines[3]
    assert lines[-1].endswith("3 of 6 steps failed: slow bad absent")
    found = logs(tmp_path)
    assert len(found) == 6
    assert "first" in found["03-bad"]
    assert found["06-last"].endswith("seen\n")


def test_steps_that_pass(tmp_path: Path) -> None:
    run = steps(tmp_path, "step build 5 true")
    assert run.returncode == 0
    assert run.stdout.splitlines()[0] == "A GPU"
    assert run.stdout.endswith("0 of 1 steps failed: none\n")


def test_a_step_that_is_stopped_takes_its_children_with_it(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    beating = f"while true; do printf . >> {beats}; sleep 0.02; done"
    run = steps(tmp_path, f"step beating 1 bash -c 'bash -c \"{beating}\"; true'")
    assert "stopped at its limit of 1 s" in run.stdout
    before = beats.stat().st_size
    assert before > 0
    time.sleep(0.2)
    assert beats.stat().st_size == before


def test_an_interrupt_ends_the_step_that_runs(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    beating = f"step beating 50 bash -c 'while true; do printf . >> {beats}; sleep 0.02; done'"
    script = "\n".join([f"source {SCRIPT}", f"begin {tmp_path} 'A GPU'", beating, "finish"])
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.DEVNULL) as run:
        for _ in range(500):
            if beats.exists():
                break
            time.sleep(0.02)
        run.terminate()
        assert run.wait(10) == 130
    time.sleep(0.2)
    before = beats.stat().st_size
    time.sleep(0.2)
    assert beats.stat().st_size == before


def test_time_left_over_goes_to_the_next_step_and_none_is_taken_from_it(tmp_path: Path) -> None:
    run = steps(tmp_path, "step first 3 echo @seconds", "step slow 1 sleep 60", "step third 20 echo @seconds")
    told = {name: int(log.splitlines()[-1]) for name, log in logs(tmp_path).items() if name != "02-slow"}
    # 90% of its own 3 s and of its own 20: the second took all that the first had left. The clock counts whole seconds.
    assert told["01-first"] in (1, 2)
    assert told["03-third"] in (17, 18)
    assert re.search("stopped at its limit of [34] s", run.stdout)


def stand_ins(folder: Path, gpu: str) -> dict[str, str]:
    """An environment with programs of the tools' names that say how they were called, and a Python that finds a GPU."""
    programs = dict.fromkeys(("nvidia-smi", "compute-sanitizer", "ncu"), 'echo "got: $(basename $0) $*"')
    # Its options, then the limit: kept in a file, so that a test can read it.
    programs["timeout"] = f'case $1 in --*) echo $2 >> {folder}/limits; shift 2 ;; *) shift ;; esac; exec "$@"'
    programs["python"] = (
        'case "$*" in *torch.zeros*) printf "%s\\n" "$GPU" ;; "-c import xdist") exit 1 ;; '
        '*) echo "got: $*, for $TORCH_CUDA_ARCH_LIST, plans $LEAKYPAR_TUNING" ;; esac'
    )
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    settings = ("TORCH_CUDA_ARCH_LIST", "LEAKYPAR_TUNING", "LEAKYPAR_BUILD")
    kept = {name: value for name, value in os.environ.items() if name not in settings}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHON": str(folder / "python"), "OUT": str(folder / "out"), "GPU": gpu}


def test_the_whole_run(tmp_path: Path) -> None:
    environment = stand_ins(tmp_path, H100)
    run = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("NVIDIA H100 80GB HBM3, compute capability 9.0\n")
    called = {name[3:]: log.splitlines()[-1] for name, log in logs(tmp_path / "out").items()}
    sanitizers = ["racecheck", "synccheck", "memcheck", "initcheck"]
    timed = ["benchmark-quick", "benchmark", "plans", "ncu-speech", "ncu-streaming"]
    assert list(called) == ["machine", "build", "extension", "tests", *sanitizers, *timed]
    limits = [int(limit) for limit in (tmp_path / "limits").read_text().split()]
    assert 580 < max(limits) <= 590  # of the last step, which inherits all time: ten minutes, less a start
    assert called["build"] == "got: setup.py build_ext --inplace, for 9.0, plans "
    assert called["tests"].startswith("got: -m pytest -q -p no:cacheprovider -m cuda,")
    for tool in sanitizers:
        assert called[tool].startswith(f"got: compute-sanitizer --tool={tool} --error-exitcode=1 ")
        assert called[tool].endswith("-m sanitizer and cuda tests/test_every_kernel.py")
        assert ("kns=leakypar" in called[tool]) == (tool != "initcheck")
    out = tmp_path / "out" / "nvidia-h100-80gb-hbm3"
    assert f"--output {out}.csv --case-seconds 1, for 9.0, plans off" in called["benchmark"]
    assert f"--output {out}-quick.csv --quick" in called["benchmark-quick"]
    assert "benchmarks.tuning --random 0 --time-limit" in called["plans"]
    assert called["plans"].endswith(f"--output {out}-tuning.csv, for 9.0, plans {out}-plans.json")
    for name, end in (("speech", "250x256x700x512 sequential"), ("streaming", "16384x1x64x512 look_back")):
        profiled = called[f"ncu-{name}"]
        assert profiled.startswith("got: ncu --clock-control none --section SpeedOfLight ")
        assert profiled.endswith(f" -m benchmarks.training_steps cuda {end} project_scan")


def test_some_steps_for_chosen_architectures(tmp_path: Path) -> None:
    environment = stand_ins(tmp_path, H100) | {"TORCH_CUDA_ARCH_LIST": "8.0;9.0a"}
    command = [SCRIPT, "build", "racecheck"]
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    called = logs(tmp_path / "out")
    assert list(called) == ["01-build", "02-racecheck"]
    assert "for 8.0;9.0a" in called["01-build"]


def test_paths_are_those_of_the_caller(tmp_path: Path) -> None:
    """A build runs elsewhere, where a relative folder of the PATH would not be found."""
    environment = stand_ins(tmp_path, H100) | {"PYTHON": "./python", "OUT": "out"}
    command = [SCRIPT, "machine", "build"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=60)
    assert f"$ '{tmp_path}/python' 'setup.py'" in logs(tmp_path / "out")["02-build"]


def test_results_that_nothing_can_keep(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = stand_ins(tmp_path, H100) | {"OUT": str(tmp_path / "file" / "out")}
    run = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1
    assert "Not a directory" in run.stderr
    assert run.stdout == ""


def test_a_step_that_there_is_not(tmp_path: Path) -> None:
    run = subprocess.run(
        [SCRIPT, "bild"], env=stand_ins(tmp_path, H100), capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert "step: got bild, expected some of machine build" in run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, and the probe would find it")
def test_without_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    run = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert "finds no GPU" in run.stderr
    assert run.stderr.endswith("no usable GPU\n")


@pytest.mark.skipif(not ops.is_available("cpu"), reason="extension not built for CPU")
def test_what_the_profiler_watches() -> None:
    command = [sys.executable, "-m", "benchmarks.training_steps", "cpu", "40x4x24x16", "sequential", "look_back"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


def test_make_gpu_takes_the_environment_as_it_is(tmp_path: Path) -> None:
    """On a machine without a network, nothing may be installed where torch and the rest are there."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", "gpu", f"PYTHON={sys.executable}", f"VENV={tmp_path / 'none'}", "GPU_ARGS=build"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"PYTHON={sys.executable} benchmarks/gpu.sh build" in planned.splitlines()
    assert "pip" not in planned
    assert "setup.py" not in planned
