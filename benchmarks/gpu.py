"""``python -m benchmarks.gpu``: build, test, sanitize, time and profile on this machine's GPU, in under ten minutes.

Every step has a log and a time limit, and no step's failure keeps another from running. Results are written to ``$OUT``
if it is set, else to ``results/``: ``summary.txt``, the benchmark's CSV files, and ``logs.tar.gz``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.steps import SECONDS, Outcome, Step, run_steps, summary
from tools.toolchain import Unavailable, find_cuda_toolkit

NO_GPU = 2
# The vendor's kernels are left out where only a kernel's own threads matter. The other two tools must see every write:
# memory that an unwatched kernel has written would count as uninitialized.
OURS = ("--kernel-regex", "kns=leakypar")
SANITIZERS = {"memcheck": (), "racecheck": OURS, "synccheck": OURS, "initcheck": ()}
# Many channels, which the sequential scan takes, and few channels over a long time, which look_back splits.
PROFILED = (("speech", "sequential"), ("streaming", "look_back"))
# Rivals that need no compiler at every shape: the others would take the time of all.
TIMED = "nn.RNN,nn.Linear,leakypar fused,snntorch LeakyParallel,spikingjelly"
NCU_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "WarpStateStats")

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


@dataclass(frozen=True)
class Gpu:
    """The GPU in use, and its compute capability."""

    name: str
    capability: tuple[int, int]

    @property
    def stem(self) -> str:
        """A file name for its results."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def find_gpu() -> Gpu | str:
    """Looks for a GPU on which torch can compute, in a process of its own; returns it, or why there is none."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, timeout=120)
    if probe.returncode != 0:
        lines = probe.stderr.strip().splitlines()
        return lines[-1] if lines else f"the probe ended with exit code {probe.returncode}"
    name, major, minor = probe.stdout.strip().splitlines()[-1].split("\t")
    return Gpu(name, (int(major), int(minor)))


def find_tool(name: str, toolkit: Path | None) -> str | None:
    """Finds one of the CUDA toolkit's programs: on the PATH, in the toolkit, or where NVIDIA's installers put it."""
    found = shutil.which(name)
    if found:
        return found
    folders = [toolkit / "bin", toolkit / name] if toolkit else []
    folders += sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    return next((str(folder / name) for folder in folders if os.access(folder / name, os.X_OK)), None)


def find_toolkit() -> Path | None:
    """The CUDA toolkit's folder, as the build finds it; without one, the build's own step says what is missing."""
    try:
        return find_cuda_toolkit().root
    except Unavailable:
        return None


def plan_steps(gpu: Gpu, out: Path, *, environment: Mapping[str, str] | None = None) -> list[Step]:
    """The steps, with the seconds that are kept for each: under ten minutes together.

    Args:
        gpu: The GPU to build for.
        out: Where the CSV files go.
        environment: Of this process; ``os.environ`` when None.
    """
    environment = os.environ if environment is None else environment
    python = sys.executable
    toolkit = find_toolkit()
    arch = environment.get("TORCH_CUDA_ARCH_LIST") or "{}.{}".format(*gpu.capability)
    # pip puts ninja beside Python, which need not be on the path.
    path = os.pathsep.join([str(Path(python).parent), environment.get("PATH", os.defpath)])
    build = {"TORCH_CUDA_ARCH_LIST": arch, "LEAKYPAR_BUILD": environment.get("LEAKYPAR_BUILD", "cuda"), "PATH": path}
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

    sanitizer = find_tool("compute-sanitizer", toolkit)
    no_sanitizer = "" if sanitizer else "compute-sanitizer: not on the PATH, and not in a CUDA toolkit"
    ncu = find_tool("ncu", toolkit)
    no_ncu = "" if ncu else "ncu: not on the PATH, and not in a CUDA toolkit"

    no_driver = "" if shutil.which("nvidia-smi") else "nvidia-smi: not on the PATH"

    def sanitize(tool: str, options: Sequence[str]) -> Step:
        # torch asks the driver for what it may not have, and goes on without: no error of an API call is ours.
        command = [sanitizer or "compute-sanitizer", f"--tool={tool}", "--error-exitcode=1", "--report-api-errors=no"]
        # Each tensor is an allocation of its own, so that reading past its end is seen.
        settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        subset = ["-m", "sanitizer and cuda", "tests/test_every_kernel.py"]
        return Step(tool, [*command, *options, *pytest, *subset], 35, settings, missing=no_sanitizer)

    def profile(shape: str, scan: str) -> Step:
        sections = [argument for section in NCU_SECTIONS for argument in ("--section", section)]
        # The GPU's clocks are not ours to set.
        command = [ncu or "ncu", "--clock-control", "none", *sections, "--kernel-name-base", "demangled"]
        program = [python, "-m", "benchmarks.once", "--shape", shape, "--plans", f"{scan},fused"]
        command += ["--kernel-name", "regex:leakypar", *program]
        return Step(f"ncu-{shape}", command, 28, missing=no_ncu, required=False)

    def benchmark(name: str, limit: float, stem: str, *options: str) -> Step:
        command = [python, "-m", "benchmarks", "--device", "cuda", "--output", str(out / f"{stem}.csv")]
        command += ["--implementations", TIMED]
        return Step(name, [*command, "--time-limit", SECONDS, *options], limit)

    return [
        Step("machine", ["nvidia-smi"], 5, missing=no_driver, required=False),
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 90, build),
        Step("extension", [python, "-c", CHECK_EXTENSION], 15),
        # The rest of the suite needs no GPU, and runs where there is none.
        Step("tests", [*pytest, *workers, "-m", "cuda"], 150, {"OMP_NUM_THREADS": "2"}),
        *(sanitize(tool, options) for tool, options in SANITIZERS.items()),
        benchmark("benchmark-quick", 35, f"{gpu.stem}-quick", "--quick", "--case-seconds", "0.5"),
        benchmark("benchmark", 85, gpu.stem, "--case-seconds", "1"),
        *(profile(shape, scan) for shape, scan in PROFILED),
    ]


def write_results(out: Path, logs: Path, outcomes: Sequence[Outcome], heading: str) -> str:
    """Writes the summary and packs the logs; returns the summary."""
    text = f"{heading}\n{summary(outcomes)}"
    (out / "summary.txt").write_text(f"{text}\n", encoding="utf-8")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        archive.add(logs, "logs")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every step.

    Returns:
        0 when every step passed, 1 when one did not, 2 when there is no usable GPU.
    """
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
    if options.only is not None:
        names = options.only.split(",")
        unknown = set(names) - {step.name for step in steps}
        if unknown:
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
    heading = "{}, compute capability {}.{}".format(gpu.name, *gpu.capability)
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)

        def keep(outcomes: Sequence[Outcome]) -> str:
            return write_results(out, logs, outcomes, heading)

        # Kept after every step: a run that is cut short has still said what it found.
        outcomes = run_steps(steps, logs, ROOT, announce=lambda line: print(line, flush=True), after=keep)
        print(keep(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
