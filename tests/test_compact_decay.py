"""A decay of `[H]` numbers: the layer that has a matrix for it, and the parametrisations that keep it in bounds."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leakypar import LeakyParallel
from leakypar.parametrizations import time_constant, unit_interval

from .layers import each_backend, expected, gradients

C, H = 5, 7
DECAYS = [0.01, 0.2, 0.5, 0.8, 0.9, 0.99, 0.999]
PARAMETRIZATIONS = {"unit_interval": unit_interval, "time_constant": time_constant, "ms": lambda: time_constant(dt=0.1)}
each_parametrization = pytest.mark.parametrize("make", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)


def pair(**options: Any) -> tuple[LeakyParallel, LeakyParallel]:
    """One seed's layer, compact and not."""
    layers = []
    for compact in (True, False):
        torch.manual_seed(0)
        layers.append(LeakyParallel(C, H, compact_decay=compact, dtype=torch.float64, **options))
    return layers[0], layers[1]


def parametrized(make: Any, **options: Any) -> LeakyParallel:
    layer = LeakyParallel(C, H, **{"beta": DECAYS, "compact_decay": True, "threshold": 0.2} | options)
    parametrize.register_parametrization(layer.rnn, "decay_l0", make())
    return layer


@each_backend
@pytest.mark.parametrize("beta", [None, 0.8, DECAYS], ids=["None", "one", "each"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_compact_layer_is_the_layer(backend: str, beta: Any, bias: bool) -> None:
    compact, layer = pair(beta=beta, bias=bias, learn_beta=True, learn_threshold=True, threshold=0.2, backend=backend)
    assert dict(compact.named_parameters())["rnn.decay_l0"].shape == (H,)
    x = torch.randn(9, 3, C, dtype=torch.float64)
    outputs = [each(x, return_membrane=True) for each in (compact, layer)]
    assert all(torch.equal(*values) for values in zip(*outputs, strict=True))
    assert outputs[0][0].any()
    ours, theirs = (gradients(each, *output) for each, output in zip((compact, layer), outputs, strict=True))
    assert torch.equal(ours.pop("rnn.decay_l0"), theirs.pop("rnn.weight_hh_l0").diagonal())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("options", [{}, {"beta": DECAYS}, {"bias": False}], ids=str)
def test_reset_draws_what_the_constructor_drew(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    made = LeakyParallel(C, H, compact_decay=True, **options)
    after = torch.rand(1)
    layer = LeakyParallel(C, H, compact_decay=True, device="meta", **options).to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"beta": 0.8}, {"bias": False, "threshold": [0.5] * H}], ids=str)
def test_states_go_to_snntorch_and_back(options: dict[str, Any]) -> None:
    snntorch = pytest.importorskip("snntorch")
    options = options | ({"threshold": torch.tensor(options["threshold"])} if "threshold" in options else {})
    theirs = snntorch.LeakyParallel(C, H, **options)
    ours = LeakyParallel(C, H, compact_decay=True, **options)
    assert ours.load_state_dict(theirs.state_dict()) is not None
    assert torch.equal(ours.rnn.decay_l0, theirs.rnn.weight_hh_l0.diagonal())
    assert ours.rnn.decay_l0.untyped_storage().nbytes() == 4 * H

    with torch.no_grad():
        for value in ours.parameters():
            value.add_(0.1)
    state = ours.snntorch_state_dict()
    theirs.load_state_dict(state)
    assert list(state) == list(theirs.state_dict())
    assert not any(value.requires_grad for value in state.values())
    x = torch.randn(9, 3, C)
    assert torch.equal(theirs(x), ours(x))
    again = LeakyParallel(C, H, compact_decay=True, **options)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.rnn.decay_l0, ours.rnn.decay_l0)


def test_a_layer_that_is_not_compact_gives_snntorchs_state_too() -> None:
    layer = LeakyParallel(C, H, weight_hh_enable=True)
    state, own = layer.snntorch_state_dict(), layer.state_dict()
    assert list(state) == list(own)
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_a_state_that_a_compact_layer_cannot_hold_is_refused() -> None:
    layer = nn.Sequential(LeakyParallel(C, H, compact_decay=True))
    before = copy.deepcopy(layer.state_dict())
    state = nn.Sequential(LeakyParallel(C, H, weight_hh_enable=True)).state_dict()
    with pytest.raises(RuntimeError, match=r"0\.rnn\.weight_hh_l0 must be diagonal .*got 42 values off the diagonal"):
        layer.load_state_dict(state)
    assert torch.equal(layer[0].rnn.decay_l0, before["0.rnn.decay_l0"])
    assert "0.rnn.weight_hh_l0" in state  # the caller's
    state["0.rnn.weight_hh_l0"] = torch.full((H, H), torch.nan)
    with pytest.raises(RuntimeError, match="must be diagonal"):
        layer.load_state_dict(state)
    state["0.rnn.weight_hh_l0"] = torch.eye(H + 1)
    with pytest.raises(RuntimeError, match=r"must have shape \[H, H\] = \[7, 7\], got \[8, 8\]"):
        layer.load_state_dict(state)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="compact_decay must be a bool, got int"):
        LeakyParallel(C, H, compact_decay=1)
    with pytest.raises(ValueError, match="compact_decay must be False with weight_hh_enable=True"):
        LeakyParallel(C, H, compact_decay=True, weight_hh_enable=True)
    layer = LeakyParallel(C, H, compact_decay=True)
    with pytest.raises(ValueError, match="compact_decay must be False with weight_hh_enable=True"):
        layer.weight_hh_enable = True
    with pytest.raises(AttributeError, match="compact_decay"):
        layer.compact_decay = False
    assert "compact_decay=True" in repr(layer)
    for each in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert each.compact_decay


# Parametrisations


@each_backend
@each_parametrization
def test_a_parametrization_keeps_the_values_and_trains_within(backend: str, make: Any) -> None:
    layer = parametrized(make, learn_beta=True, backend=backend)
    torch.testing.assert_close(layer.rnn.decay_l0, torch.tensor(DECAYS), rtol=1e-5, atol=1e-7)
    x = torch.randn(9, 3, C)
    assert torch.equal(layer(x), expected(layer, x))
    torch.testing.assert_close(layer.snntorch_state_dict()["rnn.weight_hh_l0"], torch.diag(layer.rnn.decay_l0.detach()))
    optimizer = torch.optim.Adam(layer.parameters(), lr=100.0)
    for sign in (1, -1):  # beyond either end
        for _ in range(5):
            optimizer.zero_grad()
            (sign * layer(x, return_membrane=True)[1].mean()).backward()
            assert layer.rnn.parametrizations.decay_l0.original.grad.isfinite().all()
            optimizer.step()
        assert ((layer.rnn.decay_l0 >= 0) & (layer.rnn.decay_l0 <= 1)).all()
    layer.reset_parameters()
    torch.testing.assert_close(layer.rnn.decay_l0, torch.tensor(DECAYS), rtol=1e-5, atol=1e-7)


@each_parametrization
def test_a_parametrization_is_differentiable(make: Any) -> None:
    module, decay = make(), torch.tensor(DECAYS, dtype=torch.float64)
    values = module.right_inverse(decay).requires_grad_()
    torch.testing.assert_close(module(values), decay, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(module, values)


def test_the_time_constant_is_in_the_unit_of_its_step() -> None:
    taus = parametrized(lambda: time_constant(dt=0.5)).rnn.parametrizations.decay_l0.original
    torch.testing.assert_close(torch.exp(-0.5 / taus), torch.tensor(DECAYS))
    assert "time_constant(dt=0.5)" in repr(parametrized(lambda: time_constant(0.5)))


@each_parametrization
def test_a_decay_that_is_not_learned_stays_so(make: Any) -> None:
    assert not parametrized(make).rnn.parametrizations.decay_l0.original.requires_grad
    assert parametrized(make, learn_beta=True).rnn.parametrizations.decay_l0.original.requires_grad


@pytest.mark.parametrize("make", [unit_interval, time_constant])
def test_a_decay_out_of_reach_is_refused(make: Any) -> None:
    name = make.__name__
    for beta, shown in (([0.5] * (H - 1) + [1.0], "1"), (0.0, "0")):
        with pytest.raises(ValueError, match=f"{name}: every decay must be strictly between 0 and 1, got {shown}$"):
            parametrized(make, beta=beta)
    with pytest.raises(
        ValueError, match=rf"{name}: the decay must have shape \[H\], got \[7, 7\]: .*compact_decay=True"
    ):
        parametrize.register_parametrization(LeakyParallel(C, H, beta=0.5).rnn, "weight_hh_l0", make())


@pytest.mark.parametrize(
    ("dt", "error"), [("1", TypeError), (True, TypeError), (0, ValueError), (float("inf"), ValueError)]
)
def test_a_wrong_step_is_named(dt: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="time_constant: dt must be"):
        time_constant(dt)


@each_parametrization
def test_a_parametrized_layer_is_saved_and_loaded(make: Any) -> None:
    layer, again = parametrized(make, learn_beta=True), parametrized(make, beta=[0.5] * H)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(9, 3, C)
    assert torch.equal(again(x), layer(x))
    plain: Tensor = copy.deepcopy(layer).rnn.decay_l0
    parametrize.remove_parametrizations(layer.rnn, "decay_l0")
    assert torch.equal(layer.rnn.decay_l0, plain)
