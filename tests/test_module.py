"""The module: each row of the table of decisions in README.md, and each of its arguments."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakypar import LeakyParallel, Plan, ops, surrogate

from .distributed import gradients_of_two_processes
from .layers import assert_diagonal, each_backend, expected, gradients
from .philox import next_factors

DOUBLE = {"dtype": torch.float64}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
C, H = 5, 7

NUMBER_OR_VALUES = {
    "float": (0.25, [0.25]),
    "int": (1, [1.0]),
    "0-d tensor": (torch.tensor(0.25), [0.25]),
    "tensor of one": (torch.tensor([0.25]), [0.25]),
    "tensor": (torch.linspace(0, 1, H), torch.linspace(0, 1, H).tolist()),
    "integer tensor": (torch.tensor([0, 1, 0, 1, 0, 1, 0]), [0, 1, 0, 1, 0, 1, 0]),
    "parameter": (nn.Parameter(torch.linspace(0, 1, H)), torch.linspace(0, 1, H).tolist()),
    "list": ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    "tuple": ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    "array": (np.linspace(0, 1, H), np.linspace(0, 1, H).tolist()),
}
each_form = pytest.mark.parametrize(("given", "values"), NUMBER_OR_VALUES.values(), ids=NUMBER_OR_VALUES)


def sequence(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def snntorch() -> Any:
    return pytest.importorskip("snntorch")


def both(seed: int = 0, **arguments: Any) -> tuple[LeakyParallel, Any]:
    """A layer and snntorch's, made from one seed."""
    theirs = snntorch().LeakyParallel
    torch.manual_seed(seed)
    ours = LeakyParallel(C, H, **arguments)
    torch.manual_seed(seed)
    return ours, theirs(C, H, **arguments)


def one_neuron(backend: str, **arguments: Any) -> LeakyParallel:
    """A neuron whose membrane in the first step is its input."""
    layer = LeakyParallel(1, 1, beta=0.0, bias=False, backend=backend, **DOUBLE, **arguments)
    with torch.no_grad():
        layer.rnn.weight_ih_l0.fill_(1.0)
    return layer


# The constructor


def test_arguments_are_those_of_snntorch_then_our_own() -> None:
    theirs = list(inspect.signature(snntorch().LeakyParallel).parameters.values())
    ours = list(inspect.signature(LeakyParallel).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    own = ours[len(theirs) :]
    assert [(p.name, p.default) for p in own] == [
        ("backend", "auto"),
        ("plan", None),
        ("recompute", False),
        ("binary_input", None),
        ("compact_decay", False),
        ("membrane_bounds", (0.0, math.inf)),
    ]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in own)


def test_attributes_of_snntorch_exist() -> None:
    ours, theirs = both(beta=0.5)
    for name in ("hidden_size", "threshold", "graded_spikes_factor", "beta", "surrogate_disable"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert callable(ours.spike_grad)
    assert ours.rnn.weight_ih_l0.shape == (H, C)


@pytest.mark.parametrize("beta", [None, 0.3], ids=["beta=None", "beta=0.3"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_one_seed_gives_the_weights_of_rnn_and_snntorch(beta: float | None, bias: bool, dense: bool) -> None:
    ours, theirs = both(beta=beta, bias=bias, weight_hh_enable=dense)
    torch.manual_seed(0)
    rnn = nn.RNN(C, H, nonlinearity="relu", bias=bias)
    after_rnn = torch.rand(3)
    torch.manual_seed(0)
    LeakyParallel(C, H, beta=beta, bias=bias, weight_hh_enable=dense)
    assert torch.equal(torch.rand(3), after_rnn)

    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    for name, value in rnn.named_parameters():
        if name != "weight_hh_l0":
            assert torch.equal(getattr(ours.rnn, name), value)
    if beta is None:
        drawn = rnn.weight_hh_l0 if dense else torch.diag(rnn.weight_hh_l0.diagonal())
        assert torch.equal(ours.rnn.weight_hh_l0, drawn)
        assert bool((ours.rnn.weight_hh_l0 < 0).any())
    for name, value in theirs.named_parameters():
        assert ours.get_parameter(name).requires_grad == value.requires_grad, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_applies_to_everything(dtype: torch.dtype) -> None:
    layer = LeakyParallel(C, H, beta=0.3, learn_threshold=True, dtype=dtype)
    tensors = layer.state_dict()
    assert set(tensors) >= {"beta", "threshold", "graded_spikes_factor"}
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert layer.beta is not None
    assert layer.beta.item() == torch.tensor(0.3, dtype=dtype).item()


def test_device_applies_to_everything() -> None:
    layer = LeakyParallel(C, H, beta=[0.1] * H, threshold=2, device="meta")
    with torch.device("meta"):
        under_context = LeakyParallel(C, H, beta=[0.1] * H, threshold=2)
    for each in (layer, under_context):
        assert {tensor.device.type for tensor in each.state_dict().values()} == {"meta"}
        assert each(torch.empty(3, 2, C, device="meta")).shape == (3, 2, H)


def test_default_dtype_is_torchs() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert {tensor.dtype for tensor in LeakyParallel(C, H, beta=0.5).state_dict().values()} == {torch.float64}
    finally:
        torch.set_default_dtype(before)


def test_repr_shows_what_is_not_the_default() -> None:
    assert "5, 7\n" in repr(LeakyParallel(C, H))
    layer = LeakyParallel(
        C, H, bias=False, threshold=0.5, dropout=0.1, spike_grad=surrogate.sigmoid(slope=3), learn_beta=True,
        learn_threshold=True, graded_spikes_factor=[1.0] * H, plan=Plan("sequential", "look_back", 4, 5),
        recompute=True,
    )  # fmt: skip
    for part in (
        "bias=False",
        "threshold=0.5 (learned)",
        "dropout=0.1",
        "spike_grad=sigmoid(slope=3.0)",
        "learn_beta=True",
        "graded_spikes_factor=per neuron",
        "plan=Plan(",
        "recompute=True",
    ):
        assert part in repr(layer)
    assert "threshold=unknown" in repr(LeakyParallel(C, H, device="meta"))
    note = "(runs in PyTorch: no kernel has it)"
    assert f"spike_grad=SSO(mean=0.0, variance=0.2) {note}" in repr(LeakyParallel(C, H, spike_grad=surrogate.SSO()))
    assert note in repr(LeakyParallel(C, H, spike_grad=torch.sigmoid))
    assert note not in repr(layer)


# beta


@each_form
def test_beta_of_one_value_or_one_per_neuron(given: Any, values: list[float]) -> None:
    layer = LeakyParallel(C, H, beta=given, **DOUBLE)
    expected_values = torch.tensor(values, dtype=torch.float64)
    assert layer.beta is not None
    torch.testing.assert_close(layer.beta, expected_values, rtol=1e-6, atol=0)
    assert torch.equal(layer.rnn.weight_hh_l0, torch.diag(layer.beta.expand(H)))


def test_a_python_float_keeps_its_bits() -> None:
    assert LeakyParallel(C, H, beta=0.1, threshold=0.1, **DOUBLE).threshold.item() == 0.1
    assert LeakyParallel(C, H, beta=[0.1] * H, **DOUBLE).rnn.weight_hh_l0[1, 1].item() == 0.1


def test_beta_fills_the_rows_of_a_dense_matrix() -> None:
    beta = torch.linspace(0, 1, H)
    dense = LeakyParallel(C, H, beta=beta, weight_hh_enable=True).rnn.weight_hh_l0
    assert torch.equal(dense, beta[:, None].expand(H, H))
    assert torch.equal(LeakyParallel(C, H, beta=0.5, weight_hh_enable=True).rnn.weight_hh_l0, torch.full((H, H), 0.5))


def test_beta_is_clamped_once_at_construction() -> None:
    layer = LeakyParallel(C, H, beta=[-0.5, 0.0, 0.2, 0.5, 1.0, 1.5, math.inf])
    assert torch.equal(layer.rnn.weight_hh_l0.diagonal(), torch.tensor([0, 0, 0.2, 0.5, 1, 1, 1]))
    assert torch.equal(layer.beta, layer.rnn.weight_hh_l0.diagonal())


@each_backend
def test_training_may_move_beta_anywhere(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.5, learn_beta=True, backend=backend, **DOUBLE)
    with torch.no_grad():
        layer.rnn.weight_hh_l0.diagonal().copy_(torch.linspace(-1.2, 1.2, H))
    before = copy.deepcopy(layer.state_dict())
    x = sequence(9, 3, C)
    spikes, membrane = layer(x, return_membrane=True)
    expected_spikes, expected_membrane = expected(layer, x, return_membrane=True)
    assert torch.equal(spikes, expected_spikes)
    torch.testing.assert_close(membrane, expected_membrane)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_beta_of_the_wrong_length_names_both_lengths() -> None:
    for beta in ([0.5] * 3, torch.rand(3), np.zeros(3)):
        with pytest.raises(ValueError, match=r"beta .*hidden_size = 7 .*got 3 values"):
            LeakyParallel(C, H, beta=beta)


# The spike


@each_backend
def test_a_membrane_at_the_threshold_does_not_spike(backend: str) -> None:
    layer = one_neuron(backend, threshold=1.5)
    x = torch.tensor([1.5, math.nextafter(1.5, 2), math.nextafter(1.5, 1)], dtype=torch.float64)
    assert layer(x.reshape(3, 1, 1)).flatten().tolist() == [0, 1, 0]
    assert layer(x.reshape(1, 3, 1)).flatten().tolist() == [0, 1, 0]


@each_backend
def test_the_default_surrogate_is_the_derivative_of_arctan(backend: str) -> None:
    layer = one_neuron(backend, threshold=0.7, graded_spikes_factor=3.0)
    assert layer.spike_grad == surrogate.atan(alpha=2.0)
    x = torch.linspace(0.1, 2, 20, dtype=torch.float64).reshape(1, 20, 1).requires_grad_()
    layer(x).sum().backward()
    v = (x.detach() - 0.7).requires_grad_()
    (torch.arctan(math.pi * v) / math.pi).sum().backward()  # alpha = 2
    assert x.grad is not None
    assert v.grad is not None
    torch.testing.assert_close(x.grad, 3 * v.grad)


@each_backend
def test_diagonal_layer_is_snntorchs(backend: str) -> None:
    arguments = {"beta": 0.8, "learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True} | DOUBLE
    ours, theirs = both(threshold=torch.tensor(0.6).double(), **arguments)
    theirs.double().load_state_dict(ours.state_dict())
    ours.backend = backend
    x = sequence(11, 4, C)
    ours_spikes, theirs_spikes = ours(x), theirs(x)
    assert torch.equal(ours_spikes, theirs_spikes.double())
    assert 0.1 < ours_spikes.mean().item() < 0.9
    torch.testing.assert_close(gradients(ours, ours_spikes), gradients(theirs, theirs_spikes))


@each_backend
def test_spike_grad_of_snntorch_runs(backend: str) -> None:
    x = sequence(11, 4, C)
    arguments = {"beta": 0.8, "learn_beta": True} | DOUBLE
    ours, theirs = both(spike_grad=snntorch().surrogate.fast_sigmoid(slope=3), **arguments)
    theirs.load_state_dict(ours.state_dict())  # snntorch rounds beta to float32
    ours.backend = backend
    assert ours.spike_grad == surrogate.fast_sigmoid(slope=3)
    torch.testing.assert_close(gradients(ours, ours(x)), gradients(theirs, theirs(x)))


def twice_the_step(v: Tensor) -> Tensor:
    """Spikes as snntorch gives them: in float32, whatever v is. Straight-through, with slope 2."""
    return (v > 0).float() + 2 * (v - v.detach()).float()


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_callable_can_be_spike_grad(backend: str, dtype: torch.dtype) -> None:
    layer = LeakyParallel(C, H, beta=0.5, learn_beta=True, spike_grad=twice_the_step, backend=backend, dtype=dtype)
    x = sequence(6, 2, C, dtype=dtype)
    spikes = layer(x)
    assert spikes.dtype == dtype
    if dtype == torch.float64:
        assert torch.equal(spikes, expected(layer, x))
        torch.testing.assert_close(gradients(layer, spikes), gradients(layer, expected(layer, x)))


@each_backend
def test_a_module_can_be_spike_grad(backend: str) -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, v: Tensor) -> Tensor:
            soft = torch.sigmoid(self.slope * v)
            return (v > 0).to(v) + soft - soft.detach()

    layer = LeakyParallel(C, H, spike_grad=Learned(), backend=backend, **DOUBLE)
    assert "spike_grad.slope" in layer.state_dict()
    assert gradients(layer, layer(sequence(6, 2, C)))["spike_grad.slope"].item() != 0


@each_backend
@pytest.mark.parametrize("learned_gain", [False, True])
def test_surrogate_disable_stops_the_gradient_of_spikes(backend: str, learned_gain: bool) -> None:
    layer = LeakyParallel(
        C, H, beta=0.9, threshold=0.5, surrogate_disable=True, learn_beta=True, learn_threshold=True,
        learn_graded_spikes_factor=learned_gain, spike_grad=surrogate.sigmoid(), backend=backend, **DOUBLE,
    )  # fmt: skip
    x = sequence(6, 2, C).requires_grad_()
    spikes, membrane = layer(x, return_membrane=True)
    assert torch.equal(spikes, expected(layer, x))
    assert spikes.requires_grad == learned_gain
    assert membrane.requires_grad
    if learned_gain:
        spikes.sum().backward()
        assert layer.graded_spikes_factor.grad == (spikes > 0).sum()
        assert all(p.grad is None or p.grad.count_nonzero() == 0 for p in layer.rnn.parameters())


# The threshold and the gain


@each_form
@pytest.mark.parametrize("name", ["threshold", "graded_spikes_factor"])
@pytest.mark.parametrize("learn", [False, True])
def test_threshold_and_gain_of_one_value_or_one_per_neuron(
    name: str, learn: bool, given: Any, values: list[float]
) -> None:
    layer = LeakyParallel(C, H, **{name: given, f"learn_{name}": learn}, **DOUBLE)
    value = getattr(layer, name)
    shape = given.shape if isinstance(given, Tensor) else np.shape(given)
    assert value.shape == shape  # as it was given, so that a state_dict fits snntorch's
    torch.testing.assert_close(value.detach().reshape(-1), torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=0)
    assert isinstance(value, nn.Parameter) == learn
    assert value.requires_grad == learn


@each_backend
def test_threshold_and_gain_per_neuron_learn(backend: str) -> None:
    torch.manual_seed(1)
    layer = LeakyParallel(
        C, H, beta=torch.rand(H), threshold=torch.rand(H), graded_spikes_factor=torch.rand(H), learn_beta=True,
        learn_threshold=True, learn_graded_spikes_factor=True, backend=backend, **DOUBLE,
    )  # fmt: skip
    x = sequence(8, 3, C)
    ours, theirs = gradients(layer, layer(x)), gradients(layer, expected(layer, x))
    assert len(ours) == 6
    torch.testing.assert_close(ours, theirs)
    assert all(value.count_nonzero() > 0 for value in theirs.values())


def test_a_tensor_given_is_copied() -> None:
    threshold = torch.ones(H)
    layer = LeakyParallel(C, H, beta=threshold, threshold=threshold, learn_threshold=True)
    threshold.fill_(9.0)
    assert layer.threshold.max() == 1
    assert layer.beta is not None
    assert layer.beta.max() == 1


# Dropout


@each_backend
def test_dropout_is_on_the_membrane_before_the_threshold(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.9, dropout=0.4, learn_beta=True, backend=backend, **DOUBLE)
    x = sequence(30, 4, C)
    torch.manual_seed(5)
    spikes, membrane, final = layer(x, return_membrane=True, return_state=True)
    torch.manual_seed(5)
    if backend == "fused":
        mask = next_factors((30, 4, H), 0.4)
    else:
        mask = F.dropout(torch.ones(30, 4, H, dtype=torch.float64), 0.4)
    theirs = expected(layer, x, dropout_mask=mask, return_membrane=True, return_state=True)
    assert 0.3 < (mask == 0).double().mean().item() < 0.5
    assert torch.equal(spikes, theirs[0])
    assert not torch.equal(spikes, expected(layer, x))
    torch.testing.assert_close((membrane, final), theirs[1:])  # the recurrence does not see it
    torch.testing.assert_close(gradients(layer, spikes), gradients(layer, theirs[0]))


@each_backend
def test_dropout_is_off_in_evaluation(backend: str) -> None:
    layer = LeakyParallel(C, H, dropout=0.5, backend=backend, **DOUBLE).eval()
    x = sequence(8, 3, C)
    assert torch.equal(layer(x), expected(layer, x))


@each_backend
def test_dropout_of_one_silences_the_layer(backend: str) -> None:
    layer = LeakyParallel(C, H, dropout=1.0, backend=backend, **DOUBLE)
    assert layer(sequence(8, 3, C)).count_nonzero() == 0
    assert layer.eval()(sequence(8, 3, C)).count_nonzero() > 0


# The recurrent matrix


@each_backend
def test_only_the_diagonal_is_read_and_only_it_learns(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.7, learn_beta=True, backend=backend, **DOUBLE)
    x = sequence(8, 3, C)
    spikes = layer(x)
    with torch.no_grad():
        layer.rnn.weight_hh_l0 += 1e6 * (1 - torch.eye(H))
    assert torch.equal(layer(x), spikes)
    assert_diagonal(gradients(layer, layer(x))["rnn.weight_hh_l0"])


def deepcopied(layer: LeakyParallel) -> LeakyParallel:
    return copy.deepcopy(layer)


def pickled(layer: LeakyParallel) -> LeakyParallel:
    return pickle.loads(pickle.dumps(layer))


def saved(layer: LeakyParallel) -> LeakyParallel:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(layer: LeakyParallel) -> LeakyParallel:
    other = LeakyParallel(C, H, beta=0.1, learn_beta=True, backend=layer.backend, **DOUBLE)
    other.load_state_dict(layer.state_dict())
    return other


def loaded_by_assignment(layer: LeakyParallel) -> LeakyParallel:
    other = LeakyParallel(C, H, beta=0.1, learn_beta=True, backend=layer.backend, device="meta", **DOUBLE)
    other.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    return other


@each_backend
@pytest.mark.parametrize("copied", [deepcopied, pickled, saved, loaded, loaded_by_assignment])
def test_the_gradient_stays_diagonal_in_a_copy(backend: str, copied: Any) -> None:
    layer = LeakyParallel(C, H, beta=0.7, learn_beta=True, backend=backend, **DOUBLE)
    other = copied(layer)
    x = sequence(8, 3, C)
    assert torch.equal(other(x), layer(x))
    ours, theirs = gradients(other, other(x)), gradients(layer, layer(x))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_diagonal(ours["rnn.weight_hh_l0"])
    with torch.no_grad():
        other.rnn.weight_ih_l0.zero_()
    assert layer.rnn.weight_ih_l0.count_nonzero() > 0


@pytest.mark.slow
def test_distributed_gradients_are_those_of_one_process(tmp_path: Any) -> None:
    x = sequence(6, 4, C)
    torch.manual_seed(0)
    net = nn.Sequential(LeakyParallel(C, H, beta=0.7, learn_beta=True, **DOUBLE), LeakyParallel(H, 2, **DOUBLE))
    net[1].backend = "fused" if ops.is_available("cpu") else "rnn"
    net(x).mean().backward()
    gathered = gradients_of_two_processes(net, x, tmp_path)
    assert gathered.keys() == {name for name, value in net.named_parameters() if value.requires_grad}
    for name, value in gathered.items():
        torch.testing.assert_close(value, net.get_parameter(name).grad)
    assert_diagonal(gathered["0.rnn.weight_hh_l0"])


@each_backend
def test_beta_is_frozen_unless_learned(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.7, backend=backend, **DOUBLE)
    assert "rnn.weight_hh_l0" not in gradients(layer, layer(sequence(4, 2, C)))


@pytest.mark.parametrize("beta", [None, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layer_is_snntorchs(beta: float | None, bias: bool) -> None:
    ours, theirs = both(beta=beta, bias=bias, weight_hh_enable=True, learn_beta=True, **DOUBLE)
    theirs.load_state_dict(ours.state_dict())
    assert ours.weight_hh_enable is True
    assert LeakyParallel(C, H).weight_hh_enable is False
    x = sequence(11, 4, C)
    assert torch.equal(ours(x), theirs(x).double())
    assert torch.equal(ours(x), expected(ours, x))
    by_theirs = gradients(theirs, theirs(x))
    torch.testing.assert_close(gradients(ours, ours(x)), by_theirs)
    assert by_theirs["rnn.weight_hh_l0"].count_nonzero() > H


# state_dict


STATES: dict[str, dict[str, Any]] = {
    "default": {},
    "beta": {"beta": 0.4},
    "beta per neuron": {"beta": torch.linspace(0, 1, H)},
    "without bias": {"bias": False},
    "dense": {"weight_hh_enable": True, "learn_beta": True},
    "learned": {
        "beta": 0.4,
        "learn_beta": True,
        "threshold": torch.linspace(0.5, 1, H),
        "learn_threshold": True,
        "graded_spikes_factor": 2.0,
        "learn_graded_spikes_factor": True,
    },
}


@pytest.mark.parametrize("arguments", STATES.values(), ids=STATES)
def test_state_dict_passes_between_snntorch_and_ours(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = LeakyParallel(C, H, **arguments), snntorch().LeakyParallel(C, H, **arguments)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ("beta" in ours.state_dict()) == ("beta" in arguments)
    x = sequence(7, 3, C, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours(x), theirs(x))
    other = LeakyParallel(C, H, **arguments)
    other.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert torch.equal(other(x), theirs(x))


# Shapes and dtypes of a call


@each_backend
@pytest.mark.parametrize("returned", range(4))
@pytest.mark.parametrize("shape", [(6, 3), (6,), (0, 3), (6, 0), (0, 0), (0,), (1, 1)], ids=str)
def test_every_shape_and_what_is_returned(backend: str, shape: tuple[int, ...], returned: int) -> None:
    layer = LeakyParallel(C, H, beta=0.7, learn_beta=True, learn_threshold=True, backend=backend, **DOUBLE)
    x = sequence(*shape, C).requires_grad_()
    initial = sequence(*shape[1:], H).abs().requires_grad_()
    options = {"return_membrane": returned % 2 == 1, "return_state": returned >= 2, "initial_membrane": initial}
    ours, theirs = layer(x, **options), expected(layer, x, **options)
    assert isinstance(ours, Tensor) == (returned == 0)
    ours, theirs = (each if isinstance(each, tuple) else (each,) for each in (ours, theirs))
    shapes = [(*shape, H), *[(*shape, H)] * options["return_membrane"], *[(*shape[1:], H)] * options["return_state"]]
    assert [output.shape for output in ours] == shapes
    torch.testing.assert_close(ours, theirs)

    sum(output.sum() for output in ours).backward()
    found = [x.grad, initial.grad, *[p.grad for p in layer.parameters() if p.requires_grad]]
    x.grad = initial.grad = None
    layer.zero_grad()
    sum(output.sum() for output in theirs).backward()
    for ours_grad, leaf in zip(found, [x, initial, *[p for p in layer.parameters() if p.requires_grad]], strict=True):
        assert ours_grad is not None
        torch.testing.assert_close(ours_grad, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)


@each_backend
def test_the_options_of_a_call_are_keyword_only(backend: str) -> None:
    layer = LeakyParallel(C, H, backend=backend)
    with pytest.raises(TypeError):
        layer(torch.zeros(2, 3, C), torch.zeros(3, H))


@each_backend
def test_gradients_flow_through_the_membranes(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.9, learn_beta=True, backend=backend, **DOUBLE)
    x, initial = sequence(5, 2, C), sequence(2, H, seed=4).abs()

    def membranes(x: Tensor, initial: Tensor, decay: Tensor) -> tuple[Tensor, ...]:
        arguments = {"initial_membrane": initial, "return_membrane": True, "return_state": True}
        parameters = {"rnn.weight_hh_l0": torch.diag_embed(decay)}
        return torch.func.functional_call(layer, parameters, (x,), arguments)[1:]

    inputs = (x.requires_grad_(), initial.requires_grad_(), torch.linspace(-1, 1.1, H, dtype=torch.float64))
    inputs[2].requires_grad_()
    assert torch.autograd.gradcheck(membranes, inputs)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pieces_give_what_the_whole_gives(backend: str, dtype: torch.dtype) -> None:
    layer = LeakyParallel(C, H, beta=torch.linspace(0, 1, H), threshold=2.0, backend=backend, dtype=dtype)
    x = sequence(40, 3, C, dtype=dtype)
    whole, whole_final = layer(x, return_state=True)
    pieces, state = [], None
    for piece in x.split([1, 16, 0, 23]):
        spikes, state = layer(piece, initial_membrane=state, return_state=True)
        pieces.append(spikes)
    assert state is not None
    assert state.dtype == whole_final.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype in (torch.float64, torch.float32):
        torch.testing.assert_close(state, whole_final)
    else:
        torch.testing.assert_close(state, whole_final, rtol=1e-5, atol=1e-5)  # nothing lost at the joints
    assert torch.equal(torch.cat(pieces), whole)


@each_backend
def test_gradients_flow_from_piece_to_piece(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.8, learn_beta=True, learn_threshold=True, backend=backend, **DOUBLE)
    x = sequence(20, 3, C)
    first, state = layer(x[:9], return_state=True)
    second = layer(x[9:], initial_membrane=state)
    torch.testing.assert_close(gradients(layer, torch.cat([first, second])), gradients(layer, layer(x)))


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_stack_in_every_dtype(backend: str, dtype: torch.dtype) -> None:
    net = nn.Sequential(
        LeakyParallel(C, H, beta=0.5, learn_beta=True, learn_threshold=True, backend=backend),
        LeakyParallel(H, 3, learn_graded_spikes_factor=True, backend=backend),
    ).to(dtype)
    spikes = net(sequence(6, 2, C, dtype=dtype))
    assert spikes.dtype == dtype
    spikes.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters() if p.requires_grad)


@each_backend
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layers_stack_under_autocast(backend: str, dtype: torch.dtype, given: torch.dtype) -> None:
    net = nn.Sequential(
        LeakyParallel(C, H, beta=0.5, learn_beta=True, learn_threshold=True, threshold=0.3, backend=backend),
        LeakyParallel(H, 3, beta=[0.3, 0.4, 0.5], backend=backend),
    )
    x = sequence(6, 2, C, dtype=given)
    with torch.autocast("cpu", dtype=dtype):
        hidden, membrane, final = net[0](x, return_membrane=True, return_state=True)
        spikes = net[1](hidden)
    assert {hidden.dtype, membrane.dtype, spikes.dtype} == {dtype}
    assert final.dtype == torch.float32
    margin = 0.05
    with torch.autocast("cpu", dtype=dtype):
        theirs, their_membrane = expected(net[0], x, return_membrane=True)
    clear = (their_membrane.float() - 0.3).abs() > margin
    assert torch.equal(hidden[clear], theirs[clear])
    assert clear.float().mean() > 0.8
    spikes.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters() if p.requires_grad)


@each_backend
def test_a_threshold_is_not_rounded_under_autocast(backend: str) -> None:
    """In bfloat16, 1.001 is 1: a membrane of 1 must not reach it, nor one of 1.0078125 miss it."""
    for spike_grad in (None, twice_the_step):
        layer = LeakyParallel(1, 1, beta=0.0, bias=False, threshold=1.001, spike_grad=spike_grad, backend=backend)
        with torch.no_grad():
            layer.rnn.weight_ih_l0.fill_(1.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            spikes, membrane = layer(torch.tensor([[[1.0], [1.0078125]]]), return_membrane=True)
        assert membrane.flatten().tolist() == [1.0, 1.0078125]
        assert spikes.flatten().tolist() == [0.0, 1.0]
        layer.threshold.fill_(0.999)  # which bfloat16 rounds to 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.ones(1, 1, 1)).item() == 1.0


@each_backend
def test_autocast_leaves_float64_alone(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.5, backend=backend, **DOUBLE)
    x = sequence(6, 2, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected(layer, x))


# Bad arguments


CONSTRUCTOR_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input_size is a float": ({"input_size": 5.0}, TypeError, "input_size must be an int, got float"),
    "input_size is a bool": ({"input_size": True}, TypeError, "input_size must be an int, got bool"),
    "input_size is 0": ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
    "hidden_size is None": ({"hidden_size": None}, TypeError, "hidden_size must be an int, got NoneType"),
    "hidden_size is negative": ({"hidden_size": -7}, ValueError, "hidden_size must be at least 1, got -7"),
    "beta is a string": ({"beta": "0.5"}, TypeError, "beta must be a real number.*got str"),
    "beta is a list of strings": ({"beta": ["0.5"] * H}, TypeError, "beta must be a real number.*got list"),
    "beta is complex": ({"beta": 0.5j}, TypeError, "beta must be made of real numbers, got torch.complex"),
    "beta is a complex array": ({"beta": np.ones(H) * 1j}, TypeError, "beta must be made of real numbers"),
    "beta is a bool": ({"beta": True}, TypeError, "beta must be made of real numbers, got torch.bool"),
    "beta is empty": ({"beta": []}, ValueError, "beta .*hidden_size = 7 .*got 0 values"),
    "beta is ragged": ({"beta": [[0.5], [0.5, 0.5]]}, TypeError, "beta must be a real number"),
    "beta is a matrix": ({"beta": torch.rand(H, H)}, ValueError, r"beta .*got 49 values in shape \[7, 7\]"),
    "beta is a row": ({"beta": torch.rand(1, H)}, ValueError, r"beta .*in shape \[1, 7\]"),
    "beta is NaN": ({"beta": math.nan}, ValueError, "beta must be made of numbers, got NaN"),
    "beta has a NaN": ({"beta": [0.5] * 6 + [math.nan]}, ValueError, "beta must be made of numbers, got NaN"),
    "bias is an int": ({"bias": 1}, TypeError, "bias must be a bool, got int"),
    "threshold is None": ({"threshold": None}, TypeError, "threshold must be a real number.*got NoneType"),
    "threshold is too long": ({"threshold": [1.0] * 8}, ValueError, "threshold .*hidden_size = 7 .*got 8 values"),
    "threshold broadcasts": ({"threshold": torch.ones(3, 1, H)}, ValueError, r"threshold .*shape \[3, 1, 7\]"),
    "threshold is NaN": ({"threshold": math.nan}, ValueError, "threshold must be made of numbers, got NaN"),
    "dropout is a string": ({"dropout": "half"}, TypeError, r"dropout must be a number in \[0, 1\], got str"),
    "dropout is a bool": ({"dropout": True}, TypeError, r"dropout must be a number in \[0, 1\], got bool"),
    "dropout is negative": ({"dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\], got -0.1"),
    "dropout is above 1": ({"dropout": 1.5}, ValueError, r"dropout must be in \[0, 1\], got 1.5"),
    "dropout is NaN": ({"dropout": math.nan}, ValueError, r"dropout must be in \[0, 1\], got nan"),
    "spike_grad is a string": ({"spike_grad": "atan"}, TypeError, "spike_grad must be None or a callable, got str"),
    "spike_grad is a class": ({"spike_grad": surrogate.atan}, TypeError, "spike_grad must be .*got the class atan"),
    "surrogate_disable": ({"surrogate_disable": 0}, TypeError, "surrogate_disable must be a bool, got int"),
    "learn_beta": ({"learn_beta": None}, TypeError, "learn_beta must be a bool, got NoneType"),
    "learn_threshold": ({"learn_threshold": "no"}, TypeError, "learn_threshold must be a bool, got str"),
    "gain is too long": ({"graded_spikes_factor": [1, 1]}, ValueError, "graded_spikes_factor .*got 2 values"),
    "gain is NaN": ({"graded_spikes_factor": math.nan}, ValueError, "graded_spikes_factor .*got NaN"),
    "learn_graded_spikes_factor": ({"learn_graded_spikes_factor": 1}, TypeError, "learn_graded_spikes_factor must be"),
    "weight_hh_enable": ({"weight_hh_enable": 1}, TypeError, "weight_hh_enable must be a bool, got int"),
    "dtype is integral": ({"dtype": torch.int64}, TypeError, "dtype must be one of .*got torch.int64"),
    "dtype is complex": ({"dtype": torch.complex64}, TypeError, "dtype must be one of .*got torch.complex64"),
    "dtype is a type": ({"dtype": float}, TypeError, "dtype must be one of"),
    "backend is unknown": ({"backend": "cuda"}, ValueError, 'backend must be one of "auto", "fused", "rnn", got'),
    "backend is None": ({"backend": None}, TypeError, "backend must be one of .*got NoneType"),
    "plan is unknown": ({"plan": "warp"}, ValueError, "plan"),
    "plan is a number": ({"plan": 4}, TypeError, "plan must be .*got int"),
    "plan for nn.RNN": ({"plan": "sequential", "backend": "rnn"}, ValueError, 'plan must be None with backend="rnn"'),
    "plan for a dense layer": (
        {"plan": "sequential", "weight_hh_enable": True},
        ValueError,
        "plan must be None with weight",
    ),
    "recompute is a number": ({"recompute": 1}, TypeError, "recompute must be a bool, got int"),
    "recompute for nn.RNN": ({"recompute": True, "backend": "rnn"}, ValueError, "recompute must be False with backend"),
    "recompute for a dense layer": (
        {"recompute": True, "weight_hh_enable": True},
        ValueError,
        "recompute must be False with weight_hh_enable",
    ),
    "dense and fused": ({"backend": "fused", "weight_hh_enable": True}, ValueError, "backend .*no parallel scan"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), CONSTRUCTOR_ERRORS.values(), ids=CONSTRUCTOR_ERRORS)
def test_bad_constructor_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LeakyParallel(**{"input_size": C, "hidden_size": H} | arguments)


X = torch.rand(4, 3, C)
CALL_ERRORS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a list": (X.tolist(), {}, TypeError, r"x must be a tensor \[T, N, C\] or \[T, C\], got list"),
    "None": (None, {}, TypeError, "x must be a tensor .*got NoneType"),
    "an array": (X.numpy(), {}, TypeError, "x must be a tensor .*got ndarray"),
    "sparse": (X.to_sparse(), {}, TypeError, "x must be a dense tensor .*got layout torch.sparse_coo"),
    "integers": (X.long(), {}, TypeError, "x must be a tensor of .*got torch.int64"),
    "booleans": (X > 0.5, {}, TypeError, "x must be a tensor of .*got torch.bool"),
    "complex": (X + 0j, {}, TypeError, "x must be a tensor of .*got torch.complex64"),
    "another dtype": (X.double(), {}, ValueError, "x must have the dtype of the weights, torch.float32, got torch.fl"),
    "another device": (X.to("meta"), {}, ValueError, "must be on the device of x, meta, got cpu"),
    "rank 1": (X[0, 0], {}, ValueError, r"x must have shape \[T, N, C\].*got \[5\]"),
    "rank 4": (X[None], {}, ValueError, r"x must have shape \[T, N, C\].*got \[1, 4, 3, 5\]"),
    "rank 0": (torch.tensor(1.0), {}, ValueError, r"x must have shape \[T, N, C\].*got \[\]"),
    "too few features": (X[..., 1:], {}, ValueError, r"x must have 5 input features.*got 4 in shape \[4, 3, 4\]"),
    "initial membrane is a number": (X, {"initial_membrane": 0.0}, TypeError, "initial_membrane must be a tensor"),
    "initial membrane is integral": (
        X, {"initial_membrane": torch.zeros(3, H).long()}, TypeError, "initial_membrane must be a tensor of"
    ),
    "initial membrane of one sequence": (
        X, {"initial_membrane": torch.zeros(H)}, ValueError, r"initial_membrane .*\[N, H\] = \[3, 7\].*got \[7\]"
    ),
    "initial membrane of a batch": (
        X[:, 0], {"initial_membrane": torch.zeros(3, H)}, ValueError, r"initial_membrane .*\[H\] = \[7\].*got \[3, 7\]"
    ),
    "initial membrane that broadcasts": (
        X, {"initial_membrane": torch.zeros(1, H)}, ValueError, r"initial_membrane .*got \[1, 7\]"
    ),
    "initial membrane in another dtype": (
        X, {"initial_membrane": torch.zeros(3, H).half()}, ValueError, "initial_membrane must have dtype torch.float32,"
    ),
    "initial membrane elsewhere": (
        X, {"initial_membrane": torch.zeros(3, H, device="meta")}, ValueError, "initial_membrane must be on the device"
    ),
}  # fmt: skip


@each_backend
@pytest.mark.parametrize(("x", "options", "error", "message"), CALL_ERRORS.values(), ids=CALL_ERRORS)
def test_bad_inputs(backend: str, x: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    layer = LeakyParallel(C, H, backend=backend)
    with pytest.raises(error, match=message):
        layer(x, **options)


@each_backend
@pytest.mark.parametrize("name", ["return_membrane", "return_state"])
@pytest.mark.parametrize("value", [2, None, torch.tensor(True)], ids=repr)
def test_what_is_returned_is_asked_for_with_a_bool(backend: str, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a bool, got"):
        LeakyParallel(C, H, backend=backend)(X, **{name: value})


@each_backend
def test_input_of_another_dtype_is_refused_under_autocast_too(backend: str) -> None:
    layer = LeakyParallel(C, H, backend=backend)
    with torch.autocast("cpu"), pytest.raises(ValueError, match="x must have the dtype of the weights"):
        layer(X.double())


SPIKE_GRAD_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (lambda v: 1.0, TypeError, "spike_grad must return a floating-point tensor, got float"),
    "booleans": (lambda v: v > 0, TypeError, "spike_grad must return a floating-point tensor, got a tensor of"),
    "a sum": (lambda v: v.sum(), ValueError, "spike_grad must return a tensor of its argument's shape"),
}


@each_backend
@pytest.mark.parametrize(("spike_grad", "error", "message"), SPIKE_GRAD_ERRORS.values(), ids=SPIKE_GRAD_ERRORS)
def test_bad_results_of_spike_grad(backend: str, spike_grad: Any, error: type[Exception], message: str) -> None:
    layer = LeakyParallel(C, H, spike_grad=spike_grad, backend=backend)
    with pytest.raises(error, match=message):
        layer(X)
