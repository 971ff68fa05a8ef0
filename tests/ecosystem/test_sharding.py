"""Layers over two processes: sharded neurons, and FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from leakypar import LeakyParallel, ops

from ..layers import without_kernels
from .two_processes import step, trained

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")


@without_kernels
def test_sharded_neurons_train_as_one_process(tmp_path: Path) -> None:
    net = nn.Sequential(
        LeakyParallel(6, 8, beta=0.8, threshold=0.1, learn_beta=True, learn_threshold=True, backend="fused"),
        LeakyParallel(
            8,
            5,  # which two processes do not share evenly
            beta=0.8,
            bias=False,
            learn_beta=True,
            compact_decay=True,
            threshold=torch.linspace(0.1, 0.2, 5),
            learn_threshold=True,
            learn_graded_spikes_factor=True,
            backend="fused",
            recompute=True,
        ),
    ).double()
    x = torch.randn(70, 3, 6, dtype=torch.float64)
    expected = step(copy.deepcopy(net), x)
    found = trained(net, x, "neurons", tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda message, name=name: f"{name}: {message}")
    assert expected["output"].any()


def test_fsdp_of_each_layer_trains_as_one_process(tmp_path: Path) -> None:
    backend = "fused" if ops.is_available("cpu") else "rnn"
    net = nn.Sequential(
        LeakyParallel(6, 8, beta=0.8, threshold=torch.full((8,), 0.1), learn_beta=True, backend=backend),
        LeakyParallel(
            8, 4, beta=0.8, threshold=torch.full((4,), 0.1), learn_beta=True, compact_decay=True, backend="rnn"
        ),
    ).double()
    x = torch.randn(7, 4, 6, dtype=torch.float64)
    expected = step(copy.deepcopy(net), x)
    found = trained(net, x, "fsdp", tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda message, name=name: f"{name}: {message}")


def test_what_cannot_be_sharded_is_refused() -> None:
    from leakypar.sharding import ShardNeurons

    with pytest.raises(TypeError, match="ShardNeurons shards a LeakyParallel, got Linear"):
        ShardNeurons()._apply(nn.Linear(2, 2), None)
    with pytest.raises(ValueError, match="see each other: replicate the layer"):
        ShardNeurons()._apply(LeakyParallel(2, 2, weight_hh_enable=True), None)
