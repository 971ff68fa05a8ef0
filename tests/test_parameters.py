"""What acts on a layer's parameters and settings from outside: torch's own tools, assignment and resetting."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from leakypar import LeakyParallel, functional, ops, reference, rnn, surrogate

from .layers import each_backend, expected, parameters, without_kernels

C, H = 5, 7
NAME = "weight_ih_l0"


def make(backend: str, **options: Any) -> LeakyParallel:
    torch.manual_seed(0)
    return LeakyParallel(C, H, beta=0.8, threshold=0.2, backend=backend, dtype=torch.float64, **options)


def train(layer: LeakyParallel, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.rand(6, 2, C, dtype=torch.float64)).sum().backward()
        optimizer.step()


@each_backend
def test_pruned_weights_stay_zero_through_training(backend: str) -> None:
    layer = make(backend)
    prune.random_unstructured(layer.rnn, NAME, amount=0.5)
    before = layer.rnn.weight_ih_l0_orig.detach().clone()
    train(layer)
    assert not torch.equal(layer.rnn.weight_ih_l0_orig, before)
    x = torch.rand(6, 2, C, dtype=torch.float64)
    spikes = layer(x)
    pruned = layer.rnn.weight_ih_l0_mask == 0
    assert pruned.any()
    assert not layer.rnn.weight_ih_l0[pruned].any()
    assert torch.equal(spikes, expected(layer, x))


@each_backend
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch deprecates the older two
@pytest.mark.parametrize(
    "wrap",
    [nn.utils.weight_norm, parametrizations.weight_norm, nn.utils.spectral_norm, parametrizations.spectral_norm],
    ids=["old weight_norm", "weight_norm", "old spectral_norm", "spectral_norm"],
)
def test_normalised_weights_act_and_train(backend: str, wrap: Any) -> None:
    layer = make(backend)
    plain = layer.rnn.weight_ih_l0.detach().clone()
    wrap(layer.rnn, NAME)
    train(layer)
    layer.eval()
    x = torch.rand(6, 2, C, dtype=torch.float64)
    spikes = layer(x)
    weight = layer.rnn.weight_ih_l0
    assert not torch.allclose(weight, plain)
    assert torch.equal(spikes, expected(layer, x))
    if "spectral" in wrap.__name__:
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, rel=0.3)


@each_backend
def test_a_parametrised_decay_is_used(backend: str) -> None:
    class Halved(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value / 2

    layer = make(backend)
    x = torch.rand(6, 2, C, dtype=torch.float64)
    parametrize.register_parametrization(layer.rnn, "weight_hh_l0", Halved())
    assert torch.equal(layer.rnn.weight_hh_l0.diagonal(), torch.full((H,), 0.4, dtype=torch.float64))
    assert torch.equal(layer(x), expected(layer, x))


@each_backend
def test_disk_offload(backend: str, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    layer = make(backend)
    x = torch.rand(6, 2, C, dtype=torch.float64)
    before = layer(x)
    accelerate.disk_offload(layer.rnn, str(tmp_path), execution_device=torch.device("cpu"))
    assert layer.rnn.weight_ih_l0.is_meta
    assert torch.equal(layer(x), before)


# Resetting


@pytest.mark.parametrize("options", [{}, {"beta": None}, {"bias": False}, {"weight_hh_enable": True}], ids=str)
def test_reset_parameters_is_the_constructor_again(options: dict[str, Any]) -> None:
    arguments = {"beta": torch.linspace(-0.5, 1, H), "threshold": 0.7, "learn_threshold": True} | options
    torch.manual_seed(3)
    made = LeakyParallel(C, H, **arguments)
    after = torch.rand(1)
    layer = copy.deepcopy(made)
    with torch.no_grad():
        for value in layer.state_dict().values():
            value.fill_(9.0)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(torch.rand(1), after)
    for name, value in made.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name


def test_a_layer_on_meta_is_filled_by_reset() -> None:
    layer = LeakyParallel(C, H, beta=0.3, threshold=[0.5] * H, graded_spikes_factor=2, device="meta")
    layer = layer.to_empty(device="cpu").apply(lambda each: each.reset_parameters())
    torch.testing.assert_close(layer.rnn.weight_hh_l0.detach(), 0.3 * torch.eye(H))
    assert layer.beta.item() == pytest.approx(0.3)
    assert layer.threshold.tolist() == [0.5] * H
    assert layer.graded_spikes_factor.item() == 2
    assert 0 < layer.rnn.weight_ih_l0.abs().max().item() <= H**-0.5


def test_the_surface_of_nn_rnn() -> None:
    layer, plain = LeakyParallel(C, H), nn.RNN(C, H, nonlinearity="relu")
    layer.rnn.flatten_parameters()
    assert (layer.rnn.input_size, layer.rnn.hidden_size, layer.rnn.bias) == (C, H, plain.bias)
    assert [value.shape for value in layer.rnn.all_weights[0]] == [value.shape for value in plain.all_weights[0]]
    assert [value.shape for value in layer.rnn()] == [value.shape for value in plain.all_weights[0]]


# Settings


WRONG: dict[str, tuple[str, Any, type[Exception], str]] = {
    "threshold too long": ("threshold", torch.ones(3), ValueError, "threshold .*hidden_size = 7 .*got 3 values"),
    "threshold is None": ("threshold", None, TypeError, "threshold must be a real number.*got NoneType"),
    "threshold is NaN": ("threshold", math.nan, ValueError, "threshold must be made of numbers, got NaN"),
    "gain broadcasts": ("graded_spikes_factor", torch.ones(1, H), ValueError, "graded_spikes_factor .*got 7 values"),
    "dropout": ("dropout", 1.5, ValueError, r"dropout must be in \[0, 1\], got 1.5"),
    "spike_grad": ("spike_grad", "atan", TypeError, "spike_grad must be None or a callable, got str"),
    "surrogate_disable": ("surrogate_disable", 1, TypeError, "surrogate_disable must be a bool, got int"),
    "recompute": ("recompute", "yes", TypeError, "recompute must be a bool, got str"),
    "plan": ("plan", "lanes", ValueError, "plan"),
    "backend": ("backend", "cuda", ValueError, "backend must be one of .*got 'cuda'"),
}


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_refused_where_it_is_assigned(name: str, value: Any, error: Any, message: str) -> None:
    layer = LeakyParallel(C, H)
    before = getattr(layer, name)
    with pytest.raises(error, match=message):
        setattr(layer, name, value)
    assert getattr(layer, name) is before


def test_settings_that_contradict_each_other_are_refused() -> None:
    layer = LeakyParallel(C, H, plan="sequential")
    with pytest.raises(ValueError, match='plan must be None with backend="rnn"'):
        layer.backend = "rnn"
    layer.plan, layer.backend = None, "fused"
    with pytest.raises(ValueError, match="backend .*no parallel scan"):
        layer.weight_hh_enable = True
    assert pickle.loads(pickle.dumps(layer)).backend == "fused"


@each_backend
def test_settings_assigned_later_act(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.8, learn_threshold=True, backend=backend)
    layer.threshold, layer.graded_spikes_factor = 0.1, [2.0] * H
    assert isinstance(layer.threshold, nn.Parameter)
    assert layer.threshold.dtype == torch.float32
    layer.spike_grad = nn.Identity()
    layer.spike_grad = None
    assert layer.spike_grad == surrogate.atan()
    x = torch.rand(6, 2, C)
    assert torch.equal(layer(x), expected(layer, x))


# What comes from NumPy, and what is nested


@each_backend
def test_numpy_scalars_are_taken_as_pythons(backend: str) -> None:
    layer = LeakyParallel(
        np.int64(C), np.int64(H), beta=np.float32(0.5), bias=np.True_, dropout=np.float32(0), backend=backend,
        learn_beta=np.False_, threshold=np.float32(0.25),
    )  # fmt: skip
    x = torch.rand(6, 2, C)
    spikes, _ = layer(x, return_membrane=np.True_)
    assert torch.equal(spikes, expected(layer, x))
    tensors = parameters(layer)[:4]
    functions = [reference.leaky_parallel, rnn.leaky_parallel]
    for function in [functional.leaky_parallel, *functions] if backend == "fused" else functions:
        assert torch.equal(function(x, *tensors, np.float32(0.25), np.float64(1)), spikes)


@without_kernels
def test_the_specification_needs_no_less_than_the_kernels() -> None:
    for function in (functional.leaky_parallel, rnn.leaky_parallel, reference.leaky_parallel):
        with pytest.raises(ValueError, match="threshold must be one value or one per neuron"):
            function(torch.rand(3, 2, C), torch.rand(H, C), torch.rand(H), threshold=torch.ones(3))


@each_backend
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_a_nested_tensor_is_named(backend: str, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.rand(4, C), torch.rand(2, C)], layout=layout)
    with pytest.raises(TypeError, match="x must be a dense tensor .*nested.*to_padded_tensor"):
        LeakyParallel(C, H, backend=backend)(nested)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("settings", "dtype", "lost"),
    [
        ({"beta": 0.999}, torch.bfloat16, r"decay 0\.999 becomes 1 in torch\.bfloat16"),
        ({"beta": [0.5, 0.25, 0.9999]}, torch.float16, r"decay 0\.9999 becomes 1 in"),
        ({"beta": 0.9, "threshold": 1e-9, "graded_spikes_factor": 1e6}, torch.float16, "threshold 1e-09 .*gain 1e.06 "),
    ],
)
def test_what_16_bits_take_from_a_neuron_is_said(
    settings: dict[str, Any], dtype: torch.dtype, lost: str, compact: bool
) -> None:
    layer = LeakyParallel(4, 3, **settings, compact_decay=compact)
    with pytest.warns(UserWarning, match=lost):
        nn.Sequential(layer).to(dtype)
    with pytest.warns(UserWarning, match=lost):
        LeakyParallel(4, 3, **settings, compact_decay=compact, dtype=dtype)


def test_what_keeps_its_neurons_is_not_warned_of() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        LeakyParallel(4, 3, beta=[0.0, 1.0, 0.9], threshold=0.3).to(dtype).float()
        LeakyParallel(4, 3, weight_hh_enable=True, beta=0.999).to(dtype)


@pytest.mark.skipif(not ops.is_available("cpu"), reason="no CPU kernels")
def test_a_decay_of_float32_in_a_layer_of_bfloat16() -> None:
    """As docs/layer.md has it. In bfloat16 the decay would be 1."""
    layer = LeakyParallel(4, 3, beta=0.999, backend="fused")
    decay = layer.rnn.weight_hh_l0.detach().clone()
    with pytest.warns(UserWarning, match="becomes 1"):
        layer.bfloat16()
    layer.rnn.weight_hh_l0 = nn.Parameter(decay)
    x = torch.zeros(1000, 1, 4, dtype=torch.bfloat16)
    silent, final = layer(x, initial_membrane=torch.ones(1, 3), return_state=True)
    assert silent.dtype == torch.bfloat16
    with torch.no_grad():
        bias = (layer.rnn.bias_ih_l0.double() + layer.rnn.bias_hh_l0.double()) / (1 - 0.999)
        expected = bias + (1 - bias) * 0.999**1000
    torch.testing.assert_close(final[0].double(), torch.relu(expected), rtol=1e-2, atol=1e-2)
