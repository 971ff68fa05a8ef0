"""`convert`: networks of snntorch's layers, and the same with this package's, side by side."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from leakypar import LeakyParallel, SpikesAndMembrane, convert, firing_rates, surrogate

from .layers import each_backend

snntorch = pytest.importorskip("snntorch")
pytestmark = pytest.mark.filterwarnings("ignore:LeakyParallel runs through")  # the loop, where no kernels were built

C, H = 5, 7


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape or (20, 3, C), generator=torch.Generator().manual_seed(2))


def parallel(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return snntorch.LeakyParallel(C, H, **{"beta": 0.8, "threshold": 0.2} | options)


# The parameters of snntorch's StateLeaky and LinearLeaky. They have a "beta" besides, on which nothing depends.
NAMES = {
    "tau": "layer.rnn.parametrizations.decay_l0.original",
    "threshold": "layer.threshold",
    "linear.weight": "layer.rnn.weight_ih_l0",
    "linear.bias": "layer.rnn.bias_ih_l0",
}


def gradients(module: nn.Module, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """What a module returns, and the gradients by parameter, and of its input by the name of x."""
    x = x.clone().requires_grad_()
    output = module(x)
    outputs = output if isinstance(output, tuple) else (output,)
    values = {"x": x} | {name: each for name, each in module.named_parameters() if each.requires_grad}
    weights = torch.linspace(-1, 1, outputs[0].shape[-1])
    loss = sum((each * weights).sum() for each in outputs)
    grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return outputs, {name: grad for name, grad in zip(values, grads, strict=True) if grad is not None}


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "beta=None": {"beta": None},
    "no bias": {"bias": False},
    "learned": {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True},
    "dense": {"weight_hh_enable": True, "beta": 0.1, "learn_beta": True},
    "each": {"threshold": torch.linspace(0, 0.5, H), "graded_spikes_factor": torch.linspace(1, 2, H)},
    "a learned threshold of each": {"threshold": torch.linspace(0, 0.5, H), "learn_threshold": True},
    "surrogate": {"spike_grad": snntorch.surrogate.fast_sigmoid(slope=3)},
    "surrogate_disable": {"surrogate_disable": True, "learn_graded_spikes_factor": True},
}


@each_backend
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_leaky_parallel_is_the_same_layer(backend: str, options: dict[str, Any]) -> None:
    theirs = parallel(**options)
    state = torch.random.get_rng_state()
    ours = convert(theirs, backend="auto" if options.get("weight_hh_enable") else backend)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(ours) is LeakyParallel
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    for name, value in theirs.named_parameters():
        other = ours.get_parameter(name)
        assert other is not value
        assert other.requires_grad == value.requires_grad, name
    if "surrogate_disable" in options:
        assert torch.equal(ours(inputs()), theirs(inputs()))
        return
    (spikes,), ours_gradients = gradients(ours, inputs())
    (expected,), theirs_gradients = gradients(theirs, inputs())
    assert torch.equal(spikes, expected)
    assert spikes.any()
    assert ours_gradients.keys() == theirs_gradients.keys()
    for name, value in theirs_gradients.items():
        torch.testing.assert_close(ours_gradients[name], value, rtol=1e-4, atol=1e-4)


def test_settings_that_training_uses_are_kept() -> None:
    theirs = parallel(dropout=0.25).eval().double()
    ours = convert(theirs, recompute=True, backend="fused", plan="sequential")
    assert (ours.dropout, ours.training, ours.recompute, ours.plan) == (0.25, False, True, "sequential")
    assert ours.rnn.weight_ih_l0.dtype == torch.float64
    theirs.dropout = nn.Dropout(0.5)  # where later versions have it
    assert convert(theirs).dropout == 0.5
    assert ours.spike_grad == surrogate.atan()


class Network(nn.Module):
    """A layer in two places, a weight that two layers share, a list that is no module, and a neuron of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parallel(1)
        self.again = self.first
        self.tied = parallel(2)
        self.tied.rnn.weight_ih_l0 = self.first.rnn.weight_ih_l0
        self.out = nn.Linear(C, H)
        self.out.weight = self.first.rnn.weight_ih_l0
        self.unregistered = [self.tied]
        self.other = snntorch.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.again(x) + self.unregistered[0](x) + self.out(x)


def test_what_a_network_shares_it_still_shares() -> None:
    theirs = Network()
    ours = convert(theirs)
    assert type(ours) is Network
    assert isinstance(theirs.first, snntorch.LeakyParallel)
    assert type(ours.first) is LeakyParallel
    assert ours.again is ours.first
    assert ours.unregistered[0] is ours.tied
    assert ours.tied.rnn.weight_ih_l0 is ours.first.rnn.weight_ih_l0 is ours.out.weight
    assert ours.out.weight is not theirs.out.weight
    assert isinstance(ours.other, snntorch.Leaky)
    torch.testing.assert_close(ours(inputs()), theirs(inputs()))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


class Derived(snntorch.LeakyParallel):
    pass


def hooked() -> nn.Module:
    layer = parallel()
    layer.register_forward_hook(lambda *_: None)
    return layer


def pruned(permanent: bool = False) -> nn.Module:
    layer = parallel()
    prune.random_unstructured(layer.rnn, "weight_ih_l0", amount=0.5)
    if permanent:
        prune.remove(layer.rnn, "weight_ih_l0")
    return layer


def normalised() -> nn.Module:
    layer = parallel()
    parametrizations.weight_norm(layer.rnn, "weight_ih_l0")
    return layer


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "threshold": (
        parallel(threshold=torch.ones(3, 1, H)),
        r"threshold must be one value or one per neuron.*\[3, 1, 7\]",
    ),
    "derived": (Derived(C, H), "its class Derived is derived from snntorch's"),
    "hooked": (hooked(), "it has hooks"),
    "pruned": (pruned(), "it has pruned"),
    "normalised": (normalised(), "it has parametrised weights"),
    "quantised": (snntorch.StateLeaky(0.9, H, state_quant=torch.round), "its state_quant"),
    "truncated": (snntorch.LinearLeaky(0.9, C, H, kernel_truncation_steps=8), "its kernel_truncation_steps=8"),
    "negative tau": (
        snntorch.StateLeaky(1.5, H, learn_beta=True),
        "its tau, which is learned, must be above 0.001 steps",
    ),
}


@pytest.mark.parametrize(("module", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(
        ValueError, match=f"(?s)convert cannot convert\n  the network, a {type(module).__name__}: .*{reason}"
    ):
        convert(module)


def test_one_error_lists_all_and_a_report_what_is_left() -> None:
    net = nn.Sequential(parallel(), Derived(H, H), nn.ModuleDict({"inner": REFUSED["truncated"][0]}))
    with pytest.raises(ValueError, match="(?s)cannot convert\n  1, a Derived: .*\n  2.inner, a LinearLeaky: "):
        convert(net)
    with pytest.warns(
        UserWarning, match="(?s)leaves as they are\n  1, a Derived: .*\n  2.inner, a LinearLeaky: "
    ) as shown:
        ours = convert(net, strict=False)
    assert len(shown) == 1
    assert shown[0].filename == __file__
    assert [type(each) for each in ours[:2]] == [LeakyParallel, Derived]
    assert isinstance(ours[2]["inner"], snntorch.LinearLeaky)
    assert ours[1] is not net[1]


def test_what_is_permanent_is_converted() -> None:
    layer = pruned(permanent=True)
    assert torch.equal(convert(layer)(inputs()), layer(inputs()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "network must be a module, got int"),
        ((nn.Linear(2, 2),), ValueError, "network must have a LeakyParallel, StateLeaky or LinearLeaky .* got none"),
        ((LeakyParallel(2, 2),), ValueError, "got none"),
    ],
)
def test_wrong_networks(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strict": 1}, TypeError, "strict must be a bool, got int"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ({"recompute": "yes"}, TypeError, "recompute must be a bool, got str"),
        ({"plan": "lanes"}, ValueError, "plan"),
    ],
)
def test_wrong_options_are_no_fault_of_a_layer(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        convert(parallel(), **options)
    assert "cannot convert" not in str(raised.value)


# The unclipped neurons


UNCLIPPED: dict[str, Any] = {
    "StateLeaky": lambda **options: snntorch.StateLeaky(**{"beta": 0.8, "channels": C, "threshold": 0.4} | options),
    "LinearLeaky": lambda **options: snntorch.LinearLeaky(
        **{"beta": 0.8, "in_features": C, "out_features": H, "threshold": 0.2} | options
    ),
}
each_unclipped = pytest.mark.parametrize("make", UNCLIPPED.values(), ids=UNCLIPPED)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned": {"learn_beta": True, "learn_threshold": True},
    "gain": {"graded_spikes_factor": 1.5},
    "surrogate": {"spike_grad": snntorch.surrogate.sigmoid(slope=3)},
    "beta=1": {"beta": 1.0},
    "beta above 1": {"beta": 1.1},
}


def assert_the_same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    found, ours_gradients = gradients(ours, x)
    expected, theirs_gradients = gradients(theirs, x)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-4, atol=1e-5)
    assert (expected[-1] < -0.1).any()  # which a clipped neuron has not
    if len(expected) == 2:
        apart = (expected[1] - theirs.threshold).abs() > 1e-4
        torch.testing.assert_close(found[0][apart], expected[0][apart])
        assert 0 < expected[0].count_nonzero() < expected[0].numel()
    assert ours_gradients.keys() == {NAMES.get(name, name) for name in theirs_gradients}
    for name, value in theirs_gradients.items():
        torch.testing.assert_close(
            ours_gradients[NAMES.get(name, name)].reshape(value.shape), value, rtol=1e-3, atol=1e-3
        )


@each_unclipped
@each_backend
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_an_unclipped_neuron_is_snntorchs(backend: str, make: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = make(**options)
    ours = convert(theirs, backend="fused" if backend == "fused" else "auto")
    assert type(ours) is SpikesAndMembrane
    assert_the_same(ours, theirs, inputs())


@each_unclipped
def test_one_value_for_each_channel(make: Any) -> None:
    torch.manual_seed(0)
    channels = C if make is UNCLIPPED["StateLeaky"] else H
    each = torch.linspace(0.1, 0.9, channels)
    for learn in (False, True):
        theirs = make(beta=each, threshold=each.flip(0), learn_beta=learn, learn_threshold=learn)
        assert_the_same(convert(theirs), theirs, inputs())


@each_unclipped
def test_without_spikes_and_without_bias(make: Any) -> None:
    theirs = make(output=False, **({"bias": False} if make is UNCLIPPED["LinearLeaky"] else {}))
    ours = convert(theirs)
    assert_the_same(ours, theirs, inputs())
    assert "output=False" in repr(ours)


def test_a_time_constant_trains_as_snntorchs() -> None:
    torch.manual_seed(0)
    theirs = UNCLIPPED["LinearLeaky"](learn_beta=True, beta=0.9)
    ours = convert(theirs)
    for module in (ours, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            module(inputs())[1].square().mean().backward()
            optimizer.step()
    assert theirs.tau.item() != pytest.approx(10, abs=1e-3)
    assert ours.layer.rnn.parametrizations.decay_l0.original.item() == pytest.approx(theirs.tau.item(), rel=1e-5)
    torch.testing.assert_close(ours.layer.rnn.weight_ih_l0, theirs.linear.weight, rtol=1e-4, atol=1e-5)


def test_the_two_part_where_snntorch_truncates_time() -> None:
    """Up to `kernel_truncation_steps` steps both are the same neuron, after which snntorch's forgets."""
    torch.manual_seed(0)
    whole = UNCLIPPED["StateLeaky"](beta=0.95)
    truncated = copy.deepcopy(whole)
    truncated.kernel_truncation_steps = 8
    membrane, forgets = convert(whole)(inputs())[1], truncated(inputs())[1]
    torch.testing.assert_close(membrane[:8], forgets[:8], rtol=1e-4, atol=1e-5)
    older = torch.exp(torch.tensor(-0.05 * 8)) * membrane[:-8]  # what 8 steps leave of the membrane that is forgotten
    torch.testing.assert_close(membrane[8:] - forgets[8:], older, rtol=1e-4, atol=1e-4)
    assert older.abs().max() > 0.5


def test_rates_of_a_converted_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = UNCLIPPED["LinearLeaky"]()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(x)[0]

    theirs = Net()
    (found,) = firing_rates(convert(theirs), inputs())
    assert found.layer == "lif.layer"
    assert found.rate == pytest.approx(theirs(inputs()).mean().item())
