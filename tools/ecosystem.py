"""The table of docs/ecosystem.md, from the outcomes of tests/ecosystem under the torch that runs this.

`python -m tools.ecosystem` runs those tests, writes their outcomes beside those of other versions of torch into
docs/ecosystem.json, and the table anew. `--check` only compares the table with the recorded outcomes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

DOCS = Path(__file__).resolve().parents[1] / "docs"
OUTCOMES, PAGE = DOCS / "ecosystem.json", DOCS / "ecosystem.md"
BEGIN, END = "<!-- table: python -m tools.ecosystem -->\n", "<!-- end of table -->\n"

Outcomes = dict[str, dict[str, str]]  # torch's version, then a test's name, then passed, failed or skipped


class Row(NamedTuple):
    tool: str
    tests: str  # what the names of its tests begin with
    how: str


ROWS = (
    Row("`torch.compile`", "test_compile::", "as it is; `fullgraph=True`, two graphs for all `T` and `N`"),
    Row("`torch.export`", "test_export::test_an_exported", "as it is; `T` and `N` as `Dim`, inference and training"),
    Row("AOTInductor", "test_export::test_a_package", "as it is, run from Python"),
    Row("AOTInductor, from C++", "test_export::test_cpp", '`backend="fused"`, the extension by `dlopen`'),
    Row("`torch.onnx.export`", "test_onnx::test_a_network_with_its_state", "as it is, both exporters: an `RNN` node"),
    Row("ONNX of an `ExportedProgram`", "test_onnx::test_forms", "`leakypar.onnx.translation_table()`"),
    Row("`torch.jit.trace`", "test_trace::test_a_trace", "as it is"),
    Row("`torch.fx`", "test_trace::test_fx", "the layer as a leaf of the tracer"),
    Row("`FlopCounterMode`", "test_flops::", "as it is"),
    Row("`torch.load`, weights only", "test_serialisation::test_hyper", "surrogates and plans as hyperparameters"),
    Row(
        "tensor parallelism", "test_sharding::test_sharded", "`leakypar.sharding.ShardNeurons` in `parallelize_module`"
    ),
    Row("FSDP2", "test_sharding::test_fsdp", "`fully_shard` each layer, then the network"),
    Row("torchrun, checkpoints", "test_train_distributed::", "`examples/train_distributed.py`, DDP and FSDP2"),
    Row("NIR", "test_nir::", "`leakypar.nir.to_nir`, `from_nir`; exact where no membrane would be negative"),
    Row("torchao", "test_quantisation::test_weights", "int8 weights: docs/quantisation.md"),
    Row("quantisation in training", "test_quantisation::test_training", "a parametrisation: docs/quantisation.md"),
    Row("safetensors", "test_serialisation::test_safetensors", "`save_model`, `load_model`"),
    Row("meta tensors", "test_training_tools::test_meta", "as they are"),
    Row("fake tensors", "test_training_tools::test_fake", "as they are"),
    Row("activation checkpointing", "test_training_tools::test_activation", "as it is, or `recompute=True`"),
    Row("averages of weights", "test_training_tools::test_an_average", "`AveragedModel`"),
    Row("fused optimisers", "test_training_tools::test_fused", "as they are"),
    Row("hooks", "test_training_tools::test_hooks", "as they are"),
    Row("worker processes", "test_training_tools::test_workers", "fork and spawn"),
)


def run(paths: list[str]) -> dict[str, str]:
    """The outcome of each test of these files and folders, by file and name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--show-capture=no", f"--junitxml={report}", *paths]
        subprocess.run(command, cwd=DOCS.parent, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return {f"{case.attrib['classname'].split('.')[-1]}::{case.attrib['name']}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if case.find(tag) is not None:
            return outcome
    return "passed"


def cell(outcomes: dict[str, str], tests: str) -> str:
    """`yes` where every test that ran passed, `no` where one failed, `not run` where none ran."""
    found = [outcome for name, outcome in outcomes.items() if name.startswith(tests)]
    if "failed" in found:
        return f"no: {found.count('failed')} of {len(found)} failed"
    return "yes" if "passed" in found else "not run"


def table(recorded: Outcomes) -> str:
    versions = sorted(recorded, key=lambda version: [int(part) for part in version.split(".")])
    heads = ["tool", "how", *(f"torch {version}" for version in versions)]
    lines = [heads, ["---"] * len(heads)]
    lines += [[row.tool, row.how, *(cell(recorded[version], row.tests) for version in versions)] for row in ROWS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare the table with the recorded outcomes")
    parser.add_argument("paths", nargs="*", default=["tests/ecosystem"], help="the tests to run, by default all")
    arguments = parser.parse_args()
    recorded: Outcomes = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}
    if not arguments.check:
        import torch

        version, found = torch.__version__.split("+")[0], run(arguments.paths)
        files = {name.split("::")[0] for name in found}  # whose tests may have had other names
        before_now = recorded.get(version, {}).items()
        recorded[version] = {name: each for name, each in before_now if name.split("::")[0] not in files} | found
        OUTCOMES.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    before, rest = PAGE.read_text().split(BEGIN)
    page = before + BEGIN + table(recorded) + END + rest.split(END)[1]
    if arguments.check and page != PAGE.read_text():
        sys.exit("docs/ecosystem.md: the table is not that of docs/ecosystem.json: run python -m tools.ecosystem")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
