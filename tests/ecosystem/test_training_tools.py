"""What surrounds a layer in training: meta and fake tensors, checkpointing, averages, optimisers, hooks, processes."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from leakypar import LeakyParallel

from ..layers import each_backend

T, N, C, H = 6, 4, 5, 3


def network(backend: str) -> nn.Sequential:
    return nn.Sequential(
        LeakyParallel(C, H, beta=0.9, threshold=0.1, learn_beta=True, learn_threshold=True, backend=backend),
        LeakyParallel(H, 2, beta=0.8, threshold=0.1, backend=backend),
    )


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(x).pow(2).sum().backward()
    return {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}


@each_backend
def test_meta_tensors_have_shapes_alone(backend: str) -> None:
    net = network(backend).to("meta")
    x = torch.empty(T, N, C, device="meta", requires_grad=True)
    spikes, membrane, final = net[0](x, return_membrane=True, return_state=True)
    assert [each.shape for each in (spikes, membrane, final)] == [(T, N, H), (T, N, H), (N, H)]
    assert spikes.is_meta
    net(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert net[0].rnn.weight_ih_l0.grad.shape == (H, C)


@each_backend
def test_fake_tensors(backend: str) -> None:
    with FakeTensorMode():
        net = network(backend)
        x = torch.randn(T, N, C)
        spikes = net(x)
        spikes.sum().backward()
    assert spikes.shape == (T, N, 2)
    assert net[0].rnn.weight_ih_l0.grad.shape == (H, C)


@pytest.mark.parametrize("use_reentrant", [False, True])
@each_backend
def test_activation_checkpointing(backend: str, use_reentrant: bool) -> None:
    net = network(backend)
    x = torch.randn(T, N, C, requires_grad=True)
    expected = gradients(net, x)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.net, x, use_reentrant=use_reentrant)

    found = gradients(Checkpointed(), x)
    assert {name.removeprefix("net."): value for name, value in found.items()}.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[f"net.{name}"], value), name


@each_backend
def test_an_average_of_the_weights(backend: str) -> None:
    net = network(backend)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(net)
    before = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    average.update_parameters(net)
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(value, (before.get_parameter(name) + net.get_parameter(name)) / 2)
    assert average(torch.randn(T, N, C)).shape == (T, N, 2)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@each_backend
def test_fused_optimisers_step_as_the_others(backend: str, optimizer: Any) -> None:
    plain = network(backend)
    fused = copy.deepcopy(plain)
    x = torch.randn(T, N, C)
    for net, options in ((plain, {"foreach": False}), (fused, {"fused": True})):
        steps = optimizer(net.parameters(), lr=0.1, **options)
        gradients(net, x)
        steps.step()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(fused.get_parameter(name), value)


@each_backend
def test_hooks_of_modules_and_tensors(backend: str) -> None:
    net = network(backend)
    seen: list[str] = []
    net[0].register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    net[0].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    net[0].rnn.weight_ih_l0.register_hook(lambda grad: seen.append("gradient"))
    net[0].rnn.weight_ih_l0.register_post_accumulate_grad_hook(lambda parameter: seen.append("accumulated"))
    x = torch.randn(T, N, C, requires_grad=True)
    plain = copy.deepcopy(net)
    plain[0]._forward_hooks.clear()
    assert torch.equal(net[0](x), 2 * plain[0](x))
    seen.clear()
    net(x).sum().backward()
    assert sorted(seen) == ["accumulated", "backward", "before", "gradient"]


def _spikes_of(net: nn.Module, x: Tensor, path: str) -> None:
    torch.set_num_threads(1)
    torch.save(net(x).detach(), path)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@each_backend
def test_workers(backend: str, method: str, tmp_path: Path) -> None:
    net, x = network(backend), torch.randn(T, N, C)
    expected = net(x)  # the parent has used its threads before
    path = str(tmp_path / "spikes.pt")
    worker = multiprocessing.get_context(method).Process(target=_spikes_of, args=(net, x, path))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert torch.equal(torch.load(path), expected)
