"""Networks that fire before they learn: `init.firing_rate_`, and the table of `firing_rates`."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import leakypar
from leakypar import LeakyParallel, firing_rates
from leakypar.init import firing_rate_

from .layers import each_backend

C, H = 8, 24


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        LeakyParallel(C, H, beta=0.9, dropout=0.5, **options),
        nn.Dropout(0.5),
        LeakyParallel(H, 16, threshold=torch.linspace(0.1, 2, 16), graded_spikes_factor=3.0, **options),
        LeakyParallel(16, 8, beta=0.5, bias=False, **options),
    )


def batch(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scale * torch.randn(12, 10, C, generator=torch.Generator().manual_seed(5))).to(dtype)


def assert_fires(net: nn.Module, x: Tensor, rate: float, **options: Any) -> None:
    found = firing_rates(net, x, **options)
    assert [each.rate for each in found] == pytest.approx([rate] * len(found), rel=0.1)


@each_backend
@pytest.mark.parametrize("rate", [0.1, 0.25])
@pytest.mark.parametrize("scale", [1e-30, 0.01, 1, 1e30])
def test_every_layer_reaches_the_rate_at_any_scale_of_the_input(backend: str, scale: float, rate: float) -> None:
    net, x = network(backend=backend), batch(scale)
    before = copy.deepcopy(net.state_dict())
    assert firing_rate_(net, x, rate) is net
    assert_fires(net, x, rate)
    assert all(each.training for each in net.modules())
    ordinary = firing_rate_(network(backend=backend), batch(), rate)
    for (name, value), other in zip(net.state_dict().items(), ordinary.state_dict().values(), strict=True):
        if name == "0.rnn.weight_ih_l0":
            torch.testing.assert_close(value.double() * scale, other.double())
        else:
            torch.testing.assert_close(value, other)
        if "weight_ih" in name or "bias" in name:
            s = (value / before[name]).flatten()
            torch.testing.assert_close(s, s[:1].expand_as(s))
        else:
            assert torch.equal(value, before[name]), name


def test_nothing_is_drawn() -> None:
    x = batch()
    torch.manual_seed(1)
    first = firing_rate_(network(), x)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = firing_rate_(network(), x)
    torch.manual_seed(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    net, x = network(dtype=dtype), batch(dtype=dtype)
    firing_rate_(net, x)
    assert_fires(net, x, 0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_hh_enable": True},
        {"compact_decay": True},
        {"membrane_bounds": (-1.0, 1.5)},
        {"membrane_bounds": (-math.inf, math.inf), "beta": 0.9},
        {"threshold": -0.0, "beta": 0.9},
    ],
    ids=str,
)
def test_one_layer_of_any_form(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    if "threshold" in options:  # fires wherever the membrane is above 0, at any scale
        layer = LeakyParallel(C, H, **options)
        rate = firing_rates(layer, batch())[0].rate
        with pytest.raises(ValueError, match="the layer cannot fire at a rate of 0.01 on this batch, the nearest"):
            firing_rate_(layer, batch(), 0.01)
        firing_rate_(layer, batch(), rate)
    else:
        layer = firing_rate_(LeakyParallel(C, H, **options), batch())
        assert_fires(layer, batch(), 0.1)
    firing_rate_(LeakyParallel(C, H), batch()[:, 0])


def test_a_normalised_weight_is_scaled_and_a_pruned_one_refused() -> None:
    layer = LeakyParallel(C, H, beta=0.9)
    parametrizations.weight_norm(layer.rnn, "weight_ih_l0")
    assert_fires(firing_rate_(layer, batch()), batch(), 0.1)
    layer = LeakyParallel(C, H, beta=0.9)
    prune.random_unstructured(layer.rnn, "weight_ih_l0", amount=0.5)
    with pytest.raises(ValueError, match="weight_ih_l0 of the layer is pruned or normalised: call it before"):
        firing_rate_(layer, batch())


class Shared(nn.Module):
    """One layer that runs twice, the second time from where the first ended."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LeakyParallel(C, H, beta=0.9)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, *, again: bool) -> Tensor:
        spikes, membrane = self.first(x, return_state=True)
        return self.first(x, initial_membrane=membrane) if again else spikes


def test_a_layer_that_runs_twice_is_scaled_at_its_first_run_and_counted_at_both() -> None:
    net, x = Shared(), batch()
    firing_rate_(net, x, again=True)
    assert_fires(net, x, 0.1, again=False)
    both = firing_rates(net, x, again=True)[0]
    assert both.layer == "first"
    assert both.rate == pytest.approx(
        (firing_rates(net, x, again=False)[0].rate + net(x, again=True).mean().item()) / 2
    )


UNREACHABLE = {
    "no input": (
        lambda: LeakyParallel(C, H, bias=False),
        0 * batch(),
        0.1,
        "its membrane is above 0 at 0 of all steps",
    ),
    "too often": (lambda: LeakyParallel(C, H, beta=0), batch(), 0.9, "nearest is 0.*its membrane is above 0 at 0"),
    "without weights": (lambda: LeakyParallel(C, H, threshold=-1), batch(), 0.1, "above their thresholds without any"),
    "equal": (
        lambda: LeakyParallel(C, 1, beta=0),
        batch()[:1, :1].expand(9, 1, C),
        0.5,
        "the rate jumps from|at any scale",
    ),
    "bounded": (
        lambda: LeakyParallel(C, H, membrane_bounds=(-1, 1)),
        batch(),
        0.1,
        "the nearest is 0: its membrane_bounds end at 1, which is not above every threshold",
    ),
    "infinite": (lambda: LeakyParallel(C, H), torch.inf * batch(), 0.1, "the membrane of the layer is not finite"),
}


@pytest.mark.parametrize(("make", "x", "rate", "reason"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_a_rate_out_of_reach_says_why_and_changes_nothing(make: Any, x: Tensor, rate: float, reason: str) -> None:
    torch.manual_seed(0)
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=reason):
        firing_rate_(layer, x, rate)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert not layer._forward_pre_hooks


def test_an_error_in_a_later_layer_restores_the_earlier() -> None:
    net, x = network(), batch()
    net[3].threshold = -1.0
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="firing_rate_: layer '3' cannot fire at a rate of 0.1 .* the nearest is 1: "):
        firing_rate_(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "rate", "error", "message"),
    [
        (LeakyParallel(C, H), 0, ValueError, "rate must be strictly between 0 and 1, got 0"),
        (LeakyParallel(C, H), float("nan"), ValueError, "rate must be strictly between 0 and 1, got nan"),
        (LeakyParallel(C, H), "0.1", TypeError, "rate must be a number between 0 and 1, got str"),
        (nn.Linear(C, H), 0.1, ValueError, "network must have a LeakyParallel, got Linear without one"),
        (LeakyParallel, 0.1, TypeError, "network must be a module, got type"),
    ],
)
def test_wrong_arguments(net: Any, rate: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        firing_rate_(net, batch(), rate)


def test_a_layer_that_never_runs_and_a_batch_without_steps() -> None:
    net = nn.ModuleDict({"spare": LeakyParallel(C, H)})
    net.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="network: its call does not run 'spare'"):
        firing_rate_(net, batch())
    with pytest.raises(ValueError, match="network: its call runs no LeakyParallel"):
        firing_rates(net, batch())
    for function in (firing_rate_, firing_rates):
        with pytest.raises(ValueError, match=r"x must have a step, got shape \[0, 10, "):
            function(LeakyParallel(C, H), batch()[:0])


def test_the_rate_regulariser_of_the_documentation() -> None:
    layer, x = firing_rate_(LeakyParallel(C, H, beta=0.9), batch(), 0.3), batch()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        (layer(x).mean((0, 1)) - 0.1).square().sum().backward()
        optimizer.step()
    assert firing_rates(layer, x)[0].rate == pytest.approx(0.1, abs=0.05)


# The table


@each_backend
def test_rates_are_counted(backend: str) -> None:
    layer = LeakyParallel(3, 3, beta=0.0, bias=False, dropout=0.9, graded_spikes_factor=-2.0, backend=backend)
    with torch.no_grad():
        layer.rnn.weight_ih_l0.copy_(torch.eye(3))
    x = torch.tensor([[2.0, 0.0, 2.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 2.0]]).unsqueeze(1)
    (found,) = firing_rates(layer, x)
    assert found == ("", pytest.approx(6 / 12), pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert layer.training
    assert not layer._forward_hooks


class Ragged(nn.Module):
    """A network that is given the lengths of its sequences, or a PackedSequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = LeakyParallel(C, H, beta=0.9), LeakyParallel(H, 1, threshold=-1.0, beta=0.9)

    def forward(self, x: Any, lengths: Tensor | None = None) -> Any:
        first = self.first(x, lengths=lengths, return_state=True)
        return self.second(first[0], lengths=lengths)


def test_steps_beyond_a_sequence_count_nowhere() -> None:
    lengths = torch.tensor([12, 1, 5, 3, 9, 0, 2, 7, 4, 4])
    x = batch()
    x[~(torch.arange(12).unsqueeze(1) < lengths)] = torch.nan
    net = Ragged()
    with pytest.raises(ValueError, match="firing_rate_: layer 'second' cannot fire at a rate of 0.2 .* nearest is 1: "):
        firing_rate_(net, x, 0.2, lengths=lengths)
    firing_rate_(net.first, x, 0.2, lengths=lengths)
    first, second = firing_rates(net, x, lengths=lengths)
    assert first.rate == pytest.approx(0.2, rel=0.1)
    assert first.rate * lengths.sum().item() * H == pytest.approx(net.first(x, lengths=lengths).count_nonzero().item())
    assert second == ("second", 1.0, 0.0, 1.0)  # it fires at every step of every sequence

    own = lengths > 0  # which PackedSequence asks for
    packed = nn.utils.rnn.pack_padded_sequence(x[:, own], lengths[own], enforce_sorted=False)
    assert firing_rates(net, packed) == (first, second)
    again = firing_rate_(Ragged().first, packed, 0.2)
    assert torch.equal(again.rnn.weight_ih_l0, net.first.rnn.weight_ih_l0)
    one = firing_rates(net, x[:, 2], lengths=lengths[2])
    assert one[1] == ("second", 1.0, 0.0, 1.0)


def test_the_table_is_printed() -> None:
    table = str(firing_rates(network(), batch()))
    lines = table.splitlines()
    assert lines[0] == "layer    rate  silent  saturated"
    assert [line.split()[0] for line in lines[1:]] == ["0", "2", "3"]
    assert all(line.count("%") == 2 for line in lines[1:])
    assert {"firing_rates", "FiringRates", "LayerRates", "init"} <= set(leakypar.__all__)


def test_the_default_is_silent_and_the_remedy_is_not() -> None:
    """What the warning about `beta=None` says."""
    torch.manual_seed(0)
    net = nn.Sequential(LeakyParallel(12, 64), LeakyParallel(64, 9))
    x = torch.rand(20, 32, 12)
    assert [each.rate for each in firing_rates(net, x)] == [0, 0]
    firing_rate_(net, x)
    assert_fires(net, x, 0.1)
