"""Layers over two processes: sharded neurons, and FSDP2."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from leakypar import LeakyParallel, ops

from ..layers import without_kernels
from .two_processes import Problem, step, trained

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")


KERNELS = ops.is_available("cpu")


def sharded(dropout: float) -> Problem:
    first = LeakyParallel(
        6, 8, beta=0.8, threshold=0.1, dropout=dropout, learn_beta=True, learn_threshold=True, backend="fused"
    )
    second = LeakyParallel(
        8,
        5,  # which two processes do not share evenly
        beta=0.8,
        bias=False,
        learn_beta=True,
        compact_decay=True,
        threshold=torch.linspace(0.1, 0.2, 5),
        dropout=dropout,
        learn_threshold=True,
        learn_graded_spikes_factor=True,
        backend="fused",
        recompute=True,
    )
    return Problem(nn.Sequential(first, second).double(), torch.randn(70, 3, 6, dtype=torch.float64), "neurons")


def fsdp(how: str) -> Problem:
    backend = "fused" if KERNELS else "rnn"
    net = nn.Sequential(
        LeakyParallel(6, 8, beta=0.8, threshold=torch.full((8,), 0.1), learn_beta=True, backend=backend),
        LeakyParallel(
            8, 4, beta=0.8, threshold=torch.full((4,), 0.1), learn_beta=True, compact_decay=True, backend="rnn"
        ),
    )
    return Problem(net.double(), torch.randn(7, 4, 6, dtype=torch.float64), how)


MAKERS = {
    "neurons": partial(sharded, dropout=0.0),
    "neurons, dropout": partial(sharded, dropout=0.4),
    "fsdp": partial(fsdp, "fsdp"),
    "fsdp of rnn": partial(fsdp, "fsdp of rnn"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What one process and what two make of each problem."""
    problems = {name: make() for name, make in MAKERS.items() if KERNELS or name.startswith("fsdp")}
    expected = {name: step(copy.deepcopy(net), x) for name, (net, x, _) in problems.items()}
    found = trained(problems, tmp_path_factory.mktemp("shared"))
    return {name: (expected[name], found[name]) for name in problems}


def assert_equal(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda message, name=name: f"{name}: {message}")
    assert expected["output"].any()


@without_kernels
@pytest.mark.parametrize("problem", ["neurons", "neurons, dropout"])
def test_sharded_neurons_train_as_one_process(problem: str, results: Any) -> None:
    assert_equal(*results[problem])


@pytest.mark.parametrize("problem", ["fsdp", "fsdp of rnn"])
def test_fsdp_of_each_layer_trains_as_one_process(problem: str, results: Any) -> None:
    assert_equal(*results[problem])


@pytest.mark.parametrize("options", [{}, {"compact_decay": True}, {"weight_hh_enable": True}], ids=str)
def test_parameters_that_are_freed_after_their_call_are_named(options: dict[str, Any]) -> None:
    layer = LeakyParallel(3, 2, beta=0.5, **options)
    # As fully_shard(layer.rnn) does, which by default frees the gathered parameters when the call has ended.
    layer.rnn.register_forward_hook(lambda module, inputs, found: _free(found))
    with pytest.raises(RuntimeError, match=r"use fully_shard\(layer\), or reshard_after_forward=False"):
        layer(torch.randn(4, 1, 3))


def _free(parameters: tuple[torch.Tensor, ...]) -> None:
    for each in parameters:
        each.untyped_storage().resize_(0)


def test_what_cannot_be_sharded_is_refused() -> None:
    from leakypar.sharding import ShardNeurons

    with pytest.raises(TypeError, match="ShardNeurons shards a LeakyParallel, got Linear"):
        ShardNeurons()._apply(nn.Linear(2, 2), None)
    with pytest.raises(ValueError, match="see each other: replicate the layer"):
        ShardNeurons()._apply(LeakyParallel(2, 2, weight_hh_enable=True), None)
