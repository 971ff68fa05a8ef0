"""Quantised weights, as docs/quantisation.md has them: the network is that of the rounded weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from leakypar import LeakyParallel

from ..layers import each_backend

C, H = 64, 32
BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/quantisation.md").read_text(), re.DOTALL)


def network(backend: str) -> nn.Sequential:
    layers = [LeakyParallel(*sizes, beta=0.8, threshold=0.2, backend=backend) for sizes in ((C, H), (H, 8))]
    return nn.Sequential(*layers)


def assert_runs_on_rounded_weights(net: nn.Sequential, before: nn.Sequential, steps: float) -> None:
    """Rounded to that many steps at most each way, and equal to plain layers of the rounded weights."""
    x = (torch.rand(20, 4, C) < 0.3).float()
    with torch.no_grad():
        for ours, theirs in zip(net, before, strict=True):
            weight, rounded = theirs.rnn.weight_ih_l0, ours.rnn.weight_ih_l0
            assert not torch.equal(rounded, weight)
            assert ((rounded - weight).abs() <= 1.01 * weight.abs().amax(1, keepdim=True) / steps / 2).all()
            weight.copy_(rounded)
        assert torch.equal(net(x), before(x))
        assert before(x).any()


@each_backend
def test_weights_of_torchao(backend: str) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    net, before = network(backend).eval(), network(backend).eval()
    before.load_state_dict(net.state_dict())
    exec(BLOCKS[0], {"torch": torch, "network": net})
    kept = net.state_dict()["0.rnn.parametrizations.weight_ih_l0.original"]
    assert type(kept).__name__ == "Int8Tensor"
    assert_runs_on_rounded_weights(net, before, steps=127)


@each_backend
def test_training_that_rounds(backend: str) -> None:
    net, before = network(backend), network(backend)
    before.load_state_dict(net.state_dict())
    for layer in net:
        exec(BLOCKS[1], {"torch": torch, "parametrize": parametrize, "layer": layer})
    assert_runs_on_rounded_weights(net, before, steps=127)
    x = torch.rand(20, 4, C)
    net(x).sum().backward()
    before(x).sum().backward()
    for ours, theirs in zip(net, before, strict=True):
        latent: Any = ours.rnn.parametrizations.weight_ih_l0.original
        torch.testing.assert_close(latent.grad, theirs.rnn.weight_ih_l0.grad)
        rounded = ours.rnn.weight_ih_l0.detach().clone()
        parametrize.remove_parametrizations(ours.rnn, "weight_ih_l0")
        assert torch.equal(ours.rnn.weight_ih_l0, rounded)
