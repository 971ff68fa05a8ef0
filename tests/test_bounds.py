"""Bounds of the membrane other than relu's: the layer on each backend, and what it does where it has no kernels."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch

import leakypar
from leakypar import LeakyParallel, module, ops, reference

from .layers import expected, gradients, parameters, without_kernels
from .problems import BOUNDS

C, H = 5, 12
LEARNED: dict[str, Any] = {"beta": 0.9, "threshold": 0.3, "learn_beta": True, "learn_threshold": True}


def layer(bounds: tuple[float, float], **options: Any) -> LeakyParallel:
    torch.manual_seed(0)
    return LeakyParallel(C, H, dtype=torch.float64, membrane_bounds=bounds, **{**LEARNED, **options})


def inputs() -> torch.Tensor:
    return 2 * torch.randn(30, 3, C, dtype=torch.float64)


@pytest.fixture(params=["kernels", "loop"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there are kernels; without them a warning says so, once."""
    if request.param == "kernels" and not ops.is_available("cpu"):
        pytest.skip("extension not built for CPU")
    if request.param == "loop":
        monkeypatch.setattr(ops, "is_available", lambda device_type: False)
        module._warn_once("tests: the loop is known to run")
        monkeypatch.setattr(module, "_warn_once", lambda reason: None)
    return bool(request.param == "kernels")


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.filterwarnings("ignore:tests")
def test_the_layer_is_the_specification(kernels: bool, bounds: tuple[float, float]) -> None:
    bounded, x = layer(bounds), inputs()
    found = bounded(x, return_membrane=True, return_state=True)
    wanted = expected(bounded, x, membrane_bounds=bounds, return_membrane=True, return_state=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    lower, upper = bounds
    assert ((found[1] >= lower) & (found[1] <= upper)).all()
    assert lower == -math.inf or (found[1] == lower).any()
    assert upper == math.inf or (found[1] == upper).any()
    exact = gradients(bounded, *wanted)
    for name, ours in gradients(bounded, *found).items():
        torch.testing.assert_close(ours, exact[name], rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:tests")
def test_dropout_of_a_bounded_layer(kernels: bool) -> None:
    bounded = layer((-0.45, 0.9), dropout=0.5)
    spikes, membrane = bounded(inputs(), return_membrane=True)
    above = membrane > 0.15  # what survives is twice as high
    assert (spikes > 0)[above & (2 * membrane > 0.3)].double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not spikes[~above].any()


@without_kernels
def test_auto_runs_the_kernels_where_nn_rnn_has_no_such_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    run = leakypar.functional.run
    monkeypatch.setattr(leakypar.functional, "run", lambda *a, **k: runs.append("fused") or run(*a, **k))
    for variable in ("", "rnn"):
        monkeypatch.setenv("LEAKYPAR_BACKEND", variable)
        layer((-math.inf, math.inf))(inputs())
        layer((0, math.inf))(inputs())
    assert runs == ["fused", "fused"]


def test_without_kernels_one_warning_says_that_a_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "is_available", lambda device_type: False)
    monkeypatch.setattr(ops, "unavailable_reason", lambda device_type: "no kernels in this test")
    module._warn_once.cache_clear()
    bounded = layer((-1.0, 1.0))
    with pytest.warns(UserWarning, match="through the loop of leakypar.reference: no kernels in this test"):
        bounded(inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounded(inputs())
    with pytest.raises(RuntimeError, match='backend is "fused"'):
        layer((-1.0, 1.0), backend="fused")(inputs())
    module._warn_once.cache_clear()


@without_kernels
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.45, 0.9)], ids=str)
def test_compiled_the_layer_is_the_same(bounds: tuple[float, float]) -> None:
    bounded, x = layer(bounds), inputs()
    compiled = torch.compile(bounded, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), bounded(x))
    ours, theirs = (gradients(bounded, run(x)) for run in (compiled, bounded))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


@without_kernels
def test_a_mapped_call_is_a_loop_of_calls() -> None:
    bounded = layer((-0.45, 0.9))
    many = torch.stack([inputs() for _ in range(4)])
    torch.testing.assert_close(torch.vmap(bounded)(many), torch.stack([bounded(x) for x in many]))


def test_bounds_are_kept_shown_and_checked_where_they_change() -> None:
    bounded = layer((-0.5, 2))
    for same in (bounded, copy.deepcopy(bounded), pickle.loads(pickle.dumps(bounded))):
        assert same.membrane_bounds == (-0.5, 2.0)
        assert "membrane_bounds=(-0.5, 2.0)" in repr(same)
    assert "membrane_bounds" not in repr(layer((0, math.inf)))
    bounded.membrane_bounds = [-math.inf, 1]
    assert bounded.membrane_bounds == (-math.inf, 1.0)
    with pytest.raises(ValueError, match="membrane_bounds must be"):
        bounded.membrane_bounds = (1, 0)


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((1.0, 1.0), ValueError, r"membrane_bounds must be \(lower, upper\) with lower < upper, got \(1.0, 1.0\)"),
        ((2, -1), ValueError, "lower < upper"),
        ((math.nan, 1.0), ValueError, "lower < upper"),
        ((0.0, math.nan), ValueError, "lower < upper"),
        (1.0, TypeError, r"membrane_bounds must be a pair of numbers \(lower, upper\), got 1.0"),
        ((0, 1, 2), TypeError, "a pair of numbers"),
        ((0, "1"), TypeError, "a pair of numbers"),
        ((None, 1.0), TypeError, "a pair of numbers"),
        ((False, True), TypeError, "a pair of numbers"),
        (torch.tensor([0.0, 1.0]), TypeError, "a pair of numbers"),
    ],
)
def test_bad_bounds_are_named(bounds: Any, error: type[Exception], message: str) -> None:
    x, neurons = inputs(), parameters(layer((0, math.inf)))
    with pytest.raises(error, match=message):
        LeakyParallel(C, H, membrane_bounds=bounds)
    for run in (leakypar.leaky_parallel, reference.leaky_parallel):
        with pytest.raises(error, match=message):
            run(x, *neurons, membrane_bounds=bounds)


@pytest.mark.parametrize("options", [{"backend": "rnn"}, {"weight_hh_enable": True}], ids=str)
def test_nn_rnn_has_no_other_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"membrane_bounds must be \(0, inf\) with .*, which runs nn.RNN"):
        layer((-1.0, 1.0), **options)
    assert layer((0.0, math.inf), **options).membrane_bounds == (0.0, math.inf)
