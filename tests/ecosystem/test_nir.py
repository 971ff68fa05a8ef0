"""NIR: a round trip through a file, and the Euler steps that other tools take of it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leakypar import LeakyParallel
from leakypar.nir import from_nir, to_nir

nir = pytest.importorskip("nir", reason="needs the extra: pip install leakypar[nir]")

C, H = 5, 4
says = pytest.warns(UserWarning, match="NIR has no node that keeps a membrane between bounds")


def network(**options: Any) -> nn.Sequential:
    heights = torch.linspace(1, 2, H)
    return nn.Sequential(
        LeakyParallel(C, H, beta=torch.linspace(0, 0.9, H), threshold=0.2, graded_spikes_factor=heights, **options),
        LeakyParallel(H, 3, beta=0.8, threshold=torch.linspace(0.1, 0.3, 3), **options),
    ).double()


def euler(graph: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The graph's nodes by their definitions in NIR, one Euler step of `dt` for each of `x` `[T, N, C]`."""
    for node in list(graph.nodes.values())[1:-1]:
        if isinstance(node, nir.Affine | nir.Linear):
            x = x @ node.weight.T + getattr(node, "bias", 0)
        elif isinstance(node, nir.LI):
            v, steps = np.zeros(x.shape[1:]), []
            for current in x:
                v = v + node.metadata["dt"] / node.tau * (node.v_leak - v + node.r * current)
                steps.append(v)
            x = np.stack(steps)
        elif isinstance(node, nir.Threshold):
            x = (x > node.threshold).astype(x.dtype)
        else:
            x = x * node.scale
    return x


@pytest.mark.parametrize(("bias", "compact"), [(True, False), (False, True)])
def test_a_round_trip_through_a_file_is_the_network(bias: bool, compact: bool, tmp_path: Path) -> None:
    net = network(bias=bias, compact_decay=compact)
    with says:
        graph = to_nir(net)
    nir.write(tmp_path / "network.nir", graph)
    again = from_nir(nir.read(tmp_path / "network.nir"), compact_decay=compact)
    x = torch.randn(9, 2, C, dtype=torch.float64)
    for ours, theirs in zip(again, net, strict=True):
        assert (ours.rnn.bias_ih_l0 is not None) == bias
        for one, other in zip(ours(x, return_membrane=True), theirs(x, return_membrane=True), strict=True):
            torch.testing.assert_close(one, other)
        x = theirs(x)
    assert x.any()


def test_nothing_is_clipped_where_no_membrane_would_be_negative() -> None:
    net = network(bias=False)
    with torch.no_grad():
        for layer in net:
            layer.rnn.weight_ih_l0.abs_()
    with says:
        graph = to_nir(net)
    x = torch.rand(9, 2, C, dtype=torch.float64)
    spikes = net(x).detach().numpy()
    np.testing.assert_allclose(euler(graph, x.numpy()), spikes)
    assert spikes.any()


def test_the_two_part_where_a_membrane_would_be_negative() -> None:
    layer = LeakyParallel(1, 1, beta=0.9, bias=False, threshold=0.5)
    with torch.no_grad():
        layer.rnn.weight_ih_l0.fill_(1)
    with says:
        graph = to_nir(layer)
    x = torch.tensor([-2.0, 1.0, 1.0]).reshape(3, 1, 1)
    assert layer(x).flatten().tolist() == [0, 1, 1]  # clipped at 0: 0, 1, 1.9
    assert euler(graph, x.numpy()).flatten().tolist() == [0, 0, 0]  # not: -2, -0.8, 0.28


def test_a_membrane_without_bounds_is_nirs() -> None:
    net = network(membrane_bounds=(-math.inf, math.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = to_nir(net)
    x = torch.randn(9, 2, C, dtype=torch.float64)
    assert (net[0](x, return_membrane=True)[1] < 0).any()
    spikes = net(x).detach().numpy()
    np.testing.assert_allclose(euler(graph, x.numpy()), spikes)
    assert spikes.any()


def test_what_nir_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError, match="made of LeakyParallel layers, got Linear at 1"):
        to_nir(nn.Sequential(LeakyParallel(2, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="layer 0 has weight_hh_enable=True"):
        to_nir(LeakyParallel(2, 2, beta=0.1, weight_hh_enable=True))
    with pytest.raises(ValueError, match="every decay must be below 1"):
        to_nir(LeakyParallel(2, 2, beta=1.0))
