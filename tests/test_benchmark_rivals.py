"""Every rival that is installed computes what it says, and one that is not says so."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmarks import results
from benchmarks.implementations import (
    Layer,
    all_implementations,
    associative_scan,
    base,
    compiled_loop,
    spikingjelly_lif,
)
from benchmarks.implementations.associative_scan import AssociativeScan
from benchmarks.implementations.compiled_loop import CompiledLoop
from benchmarks.implementations.leakypar_layer import Fused
from benchmarks.implementations.snntorch_leaky import SnntorchLeaky
from benchmarks.implementations.snntorch_linear_leaky import SnntorchLinearLeaky
from benchmarks.implementations.snntorch_parallel import SnntorchParallel
from benchmarks.implementations.spikingjelly_lif import Spikingjelly
from leakypar.measuring import THRESHOLD, Problem, make_problem
from tests.benchmark_cases import CPU, TINY, run_case


def test_every_rival_is_found() -> None:
    names = {implementation.name for implementation in all_implementations()}
    assert names == {
        "nn.RNN",
        "nn.Linear",
        "leakypar fused",
        "snntorch LeakyParallel",
        "snntorch Leaky",
        "snntorch LinearLeaky",
        "spikingjelly",
        "torch.compile",
        "associative_scan",
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile's own internals
@pytest.mark.slow
@pytest.mark.skipif(CompiledLoop().unavailable(CPU) is not None, reason="no C++ compiler")
def test_the_compiled_loop_is_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled_loop.CHUNK_STEPS, "cpu", 7)
    (row,) = run_case(CompiledLoop(), learn_decay=True, rounds=1)
    assert (row["status"], row["function"]) == (results.OK, "same"), row["note"]


@pytest.mark.parametrize("combine_mode", ["generic", "pointwise"])
def test_clamp_affine_maps_compose(combine_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layouts of the maps, through the tree: only a GPU has the other scan."""
    import torch._higher_order_ops as ops

    scan = ops.associative_scan

    def tree(combine: Any, xs: Any, dim: int, reverse: bool = False, combine_mode: str = "") -> Any:
        if combine_mode == "pointwise":
            assert len({x.shape for x in xs}) == 1
        return scan(combine, xs, dim, reverse=reverse, combine_mode="generic")

    monkeypatch.setattr(ops, "associative_scan", tree)
    u, decay = torch.randn(37, 3, 5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    h, steps = torch.zeros(3, 5, dtype=torch.float64), []
    for u_t in u:
        h = torch.relu(decay * h + u_t)
        steps.append(h)
    spikes, membrane = associative_scan.scan_forward(u, decay, combine_mode)
    torch.testing.assert_close(membrane, torch.stack(steps))
    assert torch.equal(spikes, (membrane > THRESHOLD).double())


@pytest.mark.parametrize(
    "rival", [SnntorchLeaky(), SnntorchLinearLeaky(), Spikingjelly()], ids=lambda rival: rival.name
)
def test_near_relatives_say_so(rival: Any) -> None:
    rival.plan = "LIF" if isinstance(rival, Spikingjelly) else ""
    (row,) = run_case(rival, rounds=1)
    if row["status"] == results.SKIPPED:
        assert "not installed" in row["note"] or "cannot be imported" in row["note"]
        return
    assert row["status"] == results.OK, row["note"]
    assert row["function"] != "same"
    assert row["gradient_error"] is None


def test_relatives_without_a_reset_agree_with_each_other() -> None:
    """Neither clips nor resets: the loop and the convolution are one function, and so check one another."""
    pytest.importorskip("snntorch")
    problem = make_problem(TINY, "float32", "spikes", CPU)
    x = problem.sets[0].x
    loop, convolution = (rival.build(problem)(x) for rival in (SnntorchLeaky(), SnntorchLinearLeaky()))
    assert 0.01 < loop.mean() < 0.99
    assert (loop != convolution).float().mean() < 1e-3


@pytest.mark.parametrize("rival", [SnntorchParallel(), SnntorchLeaky(), SnntorchLinearLeaky(), Spikingjelly()])
def test_a_rival_that_is_not_installed_is_named(rival: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    (row,) = run_case(rival)
    assert row["status"] == results.SKIPPED
    assert "is not installed" in row["note"]


def test_an_old_spikingjelly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: True)
    monkeypatch.setattr(spikingjelly_lif.metadata, "version", lambda name: "0.0.0.0.14")
    (row,) = run_case(Spikingjelly())
    assert row["note"] == "spikingjelly is at 0.0.0.0.14, expected 2 or later"


def test_what_a_rival_cannot_do_is_said() -> None:
    if find_spec("snntorch"):
        (row,) = run_case(SnntorchParallel(), dtype="bfloat16", learn_decay=True)
        assert row["status"] == results.SKIPPED
        assert "its hook" in row["note"]
    fused = Fused()
    fused.plan = "project_scan"
    assert fused.unsuited(make_problem(TINY, "float64", "spikes", CPU)) is not None
    assert fused.unsuited(make_problem(TINY, "bfloat16", "spikes", CPU)) is None
    assert not fused.applies(CPU)


def test_recomputing_is_timed_in_training_only() -> None:
    fused = Fused()
    fused.plan = "recompute"
    assert run_case(fused, pass_="forward") == []
    assert len(run_case(fused)) == 1


def test_what_torch_cannot_compile_is_skipped() -> None:
    class Uncompilable(AssociativeScan):
        def build(self, problem: Problem) -> Layer:
            raise torch._dynamo.exc.TorchDynamoException("no scan over this dimension")

    (row,) = run_case(Uncompilable())
    assert (row["status"], row["note"]) == (results.SKIPPED, "torch cannot compile it: no scan over this dimension")


def test_a_torch_without_the_scan_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._higher_order_ops, "associative_scan")
    (row,) = run_case(AssociativeScan())
    assert row["status"] == results.SKIPPED
    assert "has no associative_scan" in row["note"]
