"""``python -m benchmarks.gpu``: build, test, sanitize, time and profile on this machine's GPU, in under ten minutes.

Every step has a log and, by ``timeout``, a limit, and no step's failure keeps another from running. Results are written
to ``$OUT`` if it is set, else to ``results/``: ``summary.txt``, the CSV files of times, what was measured of plans, and
``logs.tar.gz``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.environment import ROOT
from benchmarks.shapes import SHAPES
from toolchain import Unavailable, find_cuda_toolkit

NO_GPU = 2
SECONDS = "{seconds}"  # in a command: 90% of the step's limit, for a program that can end by itself in time
# The vendor's kernels are left out, but of the last tool, which must see every write: memory that an unwatched kernel
# has written would count as uninitialized. It takes the longest, and comes last.
OURS = ("--kernel-regex", "kns=leakypar")
SANITIZERS = {"racecheck": OURS, "synccheck": OURS, "memcheck": OURS, "initcheck": ()}
# Many channels, which the sequential scan takes, and few channels over a long time, which look_back splits.
PROFILED = (("speech", "sequential"), ("streaming", "look_back"))
# Rivals that need no compiler at every shape: the others would take the time of all.
TIMED = "nn.RNN,nn.Linear,leakypar fused,snntorch LeakyParallel,spikingjelly"
SECTIONS = (
    *("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy"),
    *("WarpStateStats", "SchedulerStats", "SourceCounters"),
)
NCU_SECTIONS = [argument for section in SECTIONS for argument in ("--section", section)]

PROBE = """
import torch
if not torch.cuda.is_available():
    raise SystemExit("torch %s finds no GPU (built for CUDA: %s)" % (torch.__version__, torch.version.cuda))
torch.zeros(1, device="cuda").add_(1).item()
print(torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), sep="\\t")
"""

CHECK_EXTENSION = """
import leakypar
from leakypar import ops
print(leakypar.build_info())
if not ops.is_available("cuda"):
    raise SystemExit(ops.unavailable_reason("cuda"))
print(leakypar.plan(250, 256, 700, 512))
"""

# Training steps for the profiler to watch; the first of each method loads its module.
STEPS = """
import sys, torch, leakypar
T, N, C, H = map(int, sys.argv[2:6])
x = (torch.rand(T, N, C, device=sys.argv[1]) < 0.2).bfloat16().requires_grad_()
for method in sys.argv[6:]:
    to = {"device": sys.argv[1], "dtype": torch.bfloat16}
    layer = leakypar.LeakyParallel(C, H, beta=0.9, backend="fused", plan=method, **to)
    for _ in range(2):
        layer(x).sum().backward()
if x.is_cuda:
    torch.cuda.synchronize()
"""


class Gpu(NamedTuple):
    name: str
    capability: tuple[int, int]


class Step(NamedTuple):
    """One command, the seconds kept for it, variables to set; ``missing`` says which tool it lacks.

    What the steps before it left over is added to its limit. Without its tool a required step has failed.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = {}
    missing: str = ""
    required: bool = True


def find_gpu() -> Gpu | str:
    """Looks for a GPU on which torch can compute, in a process of its own; returns it, or why there is none."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, timeout=120)
    if probe.returncode != 0:
        return (probe.stderr.strip().splitlines() or [f"the probe ended with exit code {probe.returncode}"])[-1]
    name, major, minor = probe.stdout.strip().splitlines()[-1].split("\t")
    return Gpu(name, (int(major), int(minor)))


def find_tool(name: str) -> str | None:
    """Finds a program on the PATH, in the CUDA toolkit that the build uses, or where NVIDIA's installers put it."""
    try:
        toolkit = [find_cuda_toolkit().root]
    except Unavailable:  # the build's own step says what is missing
        toolkit = []
    folders = [folder for root in toolkit for folder in (root / "bin", root / name)]
    folders += sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    return next((found for path in (None, *map(str, folders)) if (found := shutil.which(name, path=path))), None)


def plan_steps(gpu: Gpu, out: Path) -> list[Step]:
    """The steps, whose CSV files go to ``out``, with the seconds kept for each: under ten minutes together."""
    python, stem = sys.executable, re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    arch = os.environ.get("TORCH_CUDA_ARCH_LIST") or "{}.{}".format(*gpu.capability)
    # pip puts ninja beside Python, which need not be on the path.
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)])
    build = {"TORCH_CUDA_ARCH_LIST": arch, "LEAKYPAR_BUILD": os.environ.get("LEAKYPAR_BUILD", "cuda"), "PATH": path}
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tools = {name: find_tool(name) for name in ("nvidia-smi", "compute-sanitizer", "ncu")}
    lacks = {name: "" if found else f"{name}: not on the PATH, nor in a CUDA toolkit" for name, found in tools.items()}
    steps = [
        Step("machine", ["nvidia-smi"], 5, missing=lacks["nvidia-smi"], required=False),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 90, build),
        Step("extension", [python, "-c", CHECK_EXTENSION], 15),
        # The rest of the suite needs no GPU, and runs where there is none.
        Step("tests", [*pytest, *workers, "-m", "cuda"], 150, {"OMP_NUM_THREADS": "2"}),
    ]
    for tool, options in SANITIZERS.items():
        # torch asks the driver for what it may not have, and goes on without: no error of an API call is ours.
        command = [tools["compute-sanitizer"] or "", f"--tool={tool}", "--error-exitcode=1", "--report-api-errors=no"]
        command += [*options, *pytest, "-m", "sanitizer and cuda", "tests/test_every_kernel.py"]
        # Each tensor is an allocation of its own, so that reading past its end is seen.
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        steps.append(Step(tool, command, 35, apart, missing=lacks["compute-sanitizer"]))
    for name, limit, options in (
        ("-quick", 35, ("--quick", "--case-seconds", "0.5")),
        ("", 75, ("--case-seconds", "1")),
    ):
        command = [python, "-m", "benchmarks", "--device", "cuda", "--output", str(out / f"{stem}{name}.csv")]
        command += ["--implementations", TIMED, "--time-limit", SECONDS, *options]
        steps.append(Step(f"benchmark{name}", command, limit, {"LEAKYPAR_TUNING": "off"}))
    command = [python, "-m", "benchmarks.tuning", "--time-limit", SECONDS, "--output", str(out / f"{stem}-plans.csv")]
    steps.append(Step("plans", command, 24, {"LEAKYPAR_TUNING": str(out / f"{stem}-plans.json")}))
    for shape, method in PROFILED:
        # The GPU's clocks are not ours to set.
        command = [tools["ncu"] or "", "--clock-control", "none", *NCU_SECTIONS, "--kernel-name-base", "demangled"]
        sizes = [str(getattr(SHAPES[shape], size)) for size in "TNCH"]
        command += ["--kernel-name", "regex:leakypar", python, "-c", STEPS, "cuda", *sizes, method, "project_scan"]
        steps.append(Step(f"ncu-{shape}", command, 28, missing=lacks["ncu"], required=False))
    return steps


def run_step(step: Step, log: Path, limit: float) -> tuple[str, str]:
    """Runs one step for at most ``limit`` seconds, its output in ``log``; returns its status, and why it is no pass."""
    if step.missing:
        log.write_text(f"{step.missing}\n")
        return "failed" if step.required else "skipped", step.missing
    if limit <= 0:
        return "timed out", "not started: no time is left"
    command = [part.replace(SECONDS, str(max(1, int(0.9 * limit)))) for part in step.command]
    with log.open("w", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        # It ends the command with all that the command started, and a second time with a signal that none can ignore.
        limited = ["timeout", "--kill-after=5", f"{limit:.2f}", *command]
        # Unbuffered, what a command says last stands last, whichever stream it says it on.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
        process = subprocess.Popen(
            limited, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:  # an interrupt: the command must not outlive this program
            process.terminate()
            raise
    if code in (124, -9, 137):
        return "timed out", f"stopped at its limit of {limit:.0f} s"
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1][:200]
    return ("passed", "") if code == 0 else ("failed", f"exit code {code}; last line: {last}")


def run_steps(steps: Sequence[Step], out: Path, heading: str) -> bool:
    """Runs every step, whatever became of those before it; writes summary and logs after each; whether all is well."""
    lines, bad, start = [heading], [], time.monotonic()
    end = start + sum(step.limit for step in steps)
    with tempfile.TemporaryDirectory() as folder:
        for index, step in enumerate(steps):
            # What is kept for the steps after it is theirs.
            limit = end - time.monotonic() - sum(later.limit for later in steps[index + 1 :] if not later.missing)
            began = time.monotonic()
            status, reason = run_step(step, Path(folder, f"{index + 1:02d}-{step.name}.log"), limit)
            lines.append(f"{step.name:<20} {status:<10} {time.monotonic() - began:6.1f} s  {reason}".rstrip())
            bad += [step.name] * (status not in ("passed", "skipped"))
            print(f"[{index + 1}/{len(steps)}] {lines[-1]}", flush=True)
            verdict = f"{len(bad)} of {len(steps)} steps failed: {', '.join(bad)}" if bad else "every step passed"
            text = "\n".join([*lines, f"{time.monotonic() - start:.0f} s in all; {verdict}", ""])
            (out / "summary.txt").write_text(text, encoding="utf-8")
            with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
                archive.add(folder, "logs")
    print(text, end="")
    return not bad


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every step; returns 0 when all passed, 1 when one did not, 2 when there is no usable GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition(": ")[2])
    parser.add_argument("--dry-run", action="store_true", help="print the steps, for a GPU of capability 9.0, and stop")
    parser.add_argument("--only", metavar="NAMES", help="some of the steps, such as build,tests")
    options = parser.parse_args(arguments)
    out = Path(os.environ.get("OUT") or ROOT / "results").resolve()
    gpu = Gpu("GPU", (9, 0)) if options.dry_run else find_gpu()
    if isinstance(gpu, str):
        print(f"no usable GPU: {gpu}", file=sys.stderr)
        return NO_GPU
    steps = plan_steps(gpu, out)
    names = options.only.split(",") if options.only else [step.name for step in steps]
    if unknown := set(names) - {step.name for step in steps}:
        expected = ", ".join(step.name for step in steps)
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected some of {expected}")
    steps = [step for step in steps if step.name in names]
    if options.dry_run:
        for step in steps:
            settings = [f"{name}={shlex.quote(value)}" for name, value in step.environment.items()]
            print(f"{step.name} (limit {step.limit:g} s):", *settings, shlex.join(step.command))
        print(f"{sum(step.limit for step in steps):g} s in all")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    return 0 if run_steps(steps, out, "{}, compute capability {}.{}".format(gpu.name, *gpu.capability)) else 1


if __name__ == "__main__":
    sys.exit(main())
