"""FlopCounterMode counts the layer's products on every backend."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leakypar import LeakyParallel

from ..layers import each_backend, without_kernels

T, N, C, H = 7, 3, 12, 16
PRODUCT = 2 * T * N * C * H  # of the input and the weights, or the gradient of either


@without_kernels
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("of_x", "of_weight"), [(True, True), (True, False), (False, True)])
def test_fused(of_x: bool, of_weight: bool, recompute: bool) -> None:
    layer = LeakyParallel(C, H, threshold=0.1, backend="fused", recompute=recompute)
    layer.rnn.weight_ih_l0.requires_grad_(of_weight)
    x = torch.randn(T, N, C, requires_grad=of_x)
    with FlopCounterMode(display=False) as forward:
        spikes = layer(x)
    assert forward.get_total_flops() == PRODUCT
    with FlopCounterMode(display=False) as backward:
        spikes.sum().backward()
    assert backward.get_total_flops() == (of_x + of_weight + recompute) * PRODUCT


@without_kernels
def test_each_layer_has_its_share() -> None:
    net = torch.nn.Sequential(LeakyParallel(C, H, backend="fused"), LeakyParallel(H, 5, backend="fused"))
    with FlopCounterMode(display=False, depth=2) as counter:
        net(torch.randn(T, N, C))
    counts = counter.get_flop_counts()
    assert sum(counts["Sequential.0"].values()) == PRODUCT
    assert sum(counts["Sequential.1"].values()) == 2 * T * N * H * 5
    assert counter.get_total_flops() == PRODUCT + 2 * T * N * H * 5


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_nn_rnn_takes_the_recurrent_product_too(dense: bool) -> None:
    layer = LeakyParallel(C, H, backend="rnn", weight_hh_enable=dense, learn_beta=True)
    x = torch.randn(T, N, C, requires_grad=True)
    with FlopCounterMode(display=False) as eager:
        layer(x)
    # ATen has one product of the input for all steps, and a recurrent one for each.
    assert eager.get_total_flops() == PRODUCT + 2 * T * N * H * H
    operands = (x, layer.rnn.weight_ih_l0, layer.rnn.weight_hh_l0 if dense else layer.rnn.weight_hh_l0.diagonal())
    with FlopCounterMode(display=False) as forward:
        membrane, final = torch.ops.leakypar.rnn(*operands, None, None, None)
    assert forward.get_total_flops() == eager.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        (membrane.sum() + final.sum()).backward()
    assert backward.get_total_flops() == 2 * PRODUCT + dense * 4 * T * N * H * H


@each_backend
def test_the_names_in_a_profile_say_what_ran(backend: str) -> None:
    layer = LeakyParallel(C, H, threshold=0.1, backend=backend)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(T, N, C)).sum().backward()
    names = {event.key for event in profile.key_averages()}
    expected = {"fused": {"leakypar::forward", "leakypar::backward"}, "rnn": {"aten::rnn_relu"}}[backend]
    assert expected <= names
