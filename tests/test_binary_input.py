"""`binary_input`: training keeps an input of zeros and one other value as bits, in every implementation."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import leakypar
from leakypar import ops

from .implementations import CPU, CUDA, EMULATED, Implementation, unavailable
from .problems import DTYPES, draw
from .test_implementations import check_gradients, check_outputs

T, N, C, H = 40, 16, 70, 50

on_cpu = pytest.mark.skipif(unavailable(CPU) is not None, reason=str(unavailable(CPU)))


def events(shape: tuple[int, ...], rate: float, dtype: torch.dtype = torch.float32, value: float = 1.0) -> Tensor:
    return (torch.rand(shape) < rate).to(dtype) * value


def layer_arguments(x: Tensor, **options: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    like = {"dtype": x.dtype, "device": x.device}
    return {
        "x": x,
        "weight": (0.3 * torch.randn(H, x.shape[-1])).to(**like).requires_grad_(),
        "decay": torch.full((H,), 0.9, **like).requires_grad_(),
        **options,
    }


def gradients(implementation: Implementation, x: Tensor, **options: Any) -> list[Tensor]:
    """Outputs, then the gradients of x, weight and decay."""
    x = x.detach().clone().requires_grad_()
    arguments = layer_arguments(x, **options)
    outputs = implementation.run(**arguments)
    cotangents = [torch.randn(each.shape, generator=torch.Generator().manual_seed(2)).to(each) for each in outputs]
    inputs = [x, arguments["weight"], arguments["decay"]]
    return [*outputs, *torch.autograd.grad(outputs, inputs, cotangents)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [1, 63, 64, 130, 512])
def test_the_bits_are_those_of_the_features(
    fused_implementation: Implementation, dtype: torch.dtype, features: int
) -> None:
    x = events((5, 3, features), 0.4, dtype, -2.5).to(fused_implementation.device)
    x[2, 1] = -0.0  # is zero
    x[0, 0, 0] = -2.5
    inputs = ops.Inputs(
        **layer_arguments(x),
        bias_ih=None,
        bias_hh=None,
        threshold=x.new_ones(()),
        gain=x.new_ones(()),
        initial_membrane=None,
    )
    *_, bits, value = ops.forward(inputs, ops.Settings(binary_input=True), ops.SPIKES | ops.EVENTS)
    assert (bits.dtype, value.dtype) == (torch.int64, dtype)
    assert bits.shape == (5, 3, -(-features // 64))
    assert value == -2.5
    expected = torch.zeros(5, 3, bits.shape[2] * 64, dtype=torch.bool)
    expected[..., :features] = x.cpu() != 0
    places = torch.arange(64)
    assert torch.equal((bits.cpu().unsqueeze(-1) >> places & 1).bool().flatten(2), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients(fused_implementation: Implementation, dtype: torch.dtype) -> None:
    problem = draw(T, N, C, H, dtype=dtype)
    problem.x = events((T, N, C), 0.1).to(problem.x).requires_grad_()
    promising = Implementation(
        fused_implementation.name,
        fused_implementation.device,
        False,
        lambda **arguments: fused_implementation.run(**arguments, binary_input=True),
        fused_implementation.recomputes,
    )
    check_outputs(promising, problem, dtype)
    check_gradients(promising, problem, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [64, 70])
def test_gradients_have_the_same_bits_where_the_product_is_the_same(
    fused_implementation: Implementation, dtype: torch.dtype, features: int
) -> None:
    """At nine ones of ten every product is dense, of what was unpacked or of x itself."""
    x = events((T, N, features), 0.9, dtype, 0.5).to(fused_implementation.device)
    without, promised = (gradients(fused_implementation, x, binary_input=binary) for binary in (False, True))
    assert all(map(torch.equal, without, promised))


def test_features_in_other_places(fused_implementation: Implementation) -> None:
    """An input may be a view: of wider rows, with the batch before time, with features apart."""
    x = events((T, N, C), 0.9).to(fused_implementation.device)
    expected = gradients(fused_implementation, x, binary_input=True)
    wide = torch.full((T, N, C + 3), math.nan, device=x.device)
    wide[..., 1 : C + 1] = x
    for view in (wide[..., 1 : C + 1], x.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([x, x], -1)[..., 0]):
        arguments = layer_arguments(view, binary_input=True)
        membrane = fused_implementation.run(**arguments)[1]
        assert torch.allclose(membrane, expected[1], atol=1e-6)
        (d_weight,) = torch.autograd.grad(membrane.sum(), arguments["weight"])
        arguments = layer_arguments(x, binary_input=True)
        (other,) = torch.autograd.grad(fused_implementation.run(**arguments)[1].sum(), arguments["weight"])
        torch.testing.assert_close(d_weight, other)


def test_padding_need_not_be_masked(fused_implementation: Implementation) -> None:
    x = events((T, N, C), 0.9).to(fused_implementation.device)
    lengths = torch.randint(0, T + 1, (N,), device=x.device)
    without, promised = (
        gradients(fused_implementation, x, binary_input=binary, lengths=lengths) for binary in (False, True)
    )
    assert all(map(torch.equal, without, promised))


@on_cpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("binary_input", "rate", "kept_by_the_plain"),
    [(None, 0.05, False), (True, 0.05, False), (True, 0.9, False), (None, 0.9, True), (False, 0.05, True)],
)
def test_what_keeps_the_input_alive(
    recompute: bool, binary_input: bool | None, rate: float, kept_by_the_plain: bool
) -> None:
    """Bits where they are promised, where they save time, and, if found, where memory was asked to be saved."""
    layer = leakypar.LeakyParallel(C, H, backend="fused", recompute=recompute, binary_input=binary_input)
    x = events((T, N, C), rate)
    alive, spikes = weakref.ref(x), layer(x)
    del x
    gc.collect()
    assert (alive() is not None) == (kept_by_the_plain and not (recompute and binary_input is None))
    spikes.sum().backward()
    assert layer.rnn.weight_ih_l0.grad.shape == (H, C)


@on_cpu
def test_a_stack_keeps_no_spikes_and_few_bytes() -> None:
    """With bits and recomputation a layer holds T N (C / 8 + H / 4) bytes, and the spikes between layers are gone."""
    T, N, size = 256, 4, 128
    layers = [leakypar.LeakyParallel(size, size, beta=0.9, backend="fused", recompute=True) for _ in range(4)]
    stack = nn.Sequential(*layers)
    for layer in layers:
        nn.init.normal_(layer.rnn.weight_ih_l0, 0.05, 0.2)
    handed_on: list[weakref.ref[Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: handed_on.append(weakref.ref(output)))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        spikes = stack(events((T, N, size), 0.05))
    assert [reference() is not None for reference in handed_on] == [False, False, False, True]
    parameters = {parameter.data_ptr() for parameter in stack.parameters()}
    layer_bytes = sum(size for address, size in kept.items() if address not in parameters) / len(layers)
    assert layer_bytes <= T * N * (size / 8 + size / 4) + 1024  # a number or two for each neuron
    spikes.sum().backward()
    assert all(layer.rnn.weight_ih_l0.grad.any() for layer in layers)


@pytest.mark.parametrize("bad", [0.5, math.inf, math.nan])
@pytest.mark.parametrize("where", [(0, 0, 1), (T - 1, N - 1, C - 1)], ids=str)
def test_a_broken_promise_is_never_a_wrong_gradient(
    fused_implementation: Implementation, bad: float, where: tuple[int, int, int]
) -> None:
    """A CPU says so. The kernels of a GPU, which nothing waits for, leave NaN where a product would be wrong."""
    x = events((T, N, C), 0.1)
    x[0, 0, 0] = 1
    x[where] = bad
    x = x.to(fused_implementation.device)
    if fused_implementation in EMULATED:
        assert gradients(fused_implementation, x, binary_input=True)[4].isnan().any()
    elif fused_implementation.device == "cpu":
        with pytest.raises(ValueError, match="binary_input must be None or False .* got True"):
            gradients(fused_implementation, x, binary_input=True)
    else:
        pytest.skip("the assertion of a device ends the process's use of it")


@on_cpu
def test_several_values_are_no_events() -> None:
    """A gain for each neuron of the layer before makes several values: x is kept, and multiplied, as it is."""
    x = events((T, N, C), 0.05) * torch.linspace(0.5, 1.5, C)
    without, found = (gradients(CPU, x, binary_input=binary) for binary in (False, None))
    assert all(map(torch.equal, without, found))


@on_cpu
def test_the_plan_says_and_takes_the_rates() -> None:
    chosen = leakypar.plan(T, N, C, H, device="cpu")
    assert (chosen.event_rate, chosen.backward_event_rate) == (0.4, 0.3)
    assert leakypar.plan(128, 2, C, H, device="cpu").event_rate == 0.4
    assert leakypar.plan(127, 2, C, H, device="cpu").event_rate == 0  # too few rows
    assert leakypar.plan(T, N, C, H, device=leakypar.DeviceFacts(132, 50 << 20)).event_rate == 0
    x = events((T, N, C), 0.6)
    results = {}
    for name, plan in (
        ("none", None),
        ("dense", chosen._replace(event_rate=0.0, backward_event_rate=0.0)),
        ("events", "events"),
        ("rates", chosen._replace(event_rate=1.0, backward_event_rate=1.0)),
    ):
        arguments = layer_arguments(x, plan=plan)
        spikes = leakypar.leaky_parallel(**arguments)
        results[name] = torch.autograd.grad(spikes.sum(), arguments["weight"])[0]
    assert torch.equal(results["none"], results["dense"])
    assert torch.equal(results["events"], results["rates"])
    assert not torch.equal(results["none"], results["events"])
    torch.testing.assert_close(results["none"], results["events"])


@on_cpu
def test_wrong_settings_are_named() -> None:
    with pytest.raises(TypeError, match="binary_input must be a bool or None, got str"):
        leakypar.LeakyParallel(C, H, binary_input="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='binary_input must be None with backend="rnn"'):
        leakypar.LeakyParallel(C, H, binary_input=True, backend="rnn")
    with pytest.raises(ValueError, match="plan must not be 'events' with binary_input=False"):
        leakypar.LeakyParallel(C, H, binary_input=False, plan="events")
    with pytest.raises(ValueError, match="event_rate must be from 0 to 1, got 1.5"):
        leakypar.LeakyParallel(C, H, plan=leakypar.plan(T, N, C, H, device="cpu")._replace(event_rate=1.5))
    layer = leakypar.LeakyParallel(C, H)
    layer.binary_input = True
    assert "binary_input=True" in repr(layer)


@on_cpu
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_and_transformed(recompute: bool) -> None:
    x = events((T, N, C), 0.05)
    weight = layer_arguments(x)["weight"].detach()
    decay = torch.full((H,), 0.9)

    def loss(weight: Tensor, x: Tensor) -> Tensor:
        return leakypar.leaky_parallel(x, weight, decay, binary_input=True, recompute=recompute).sum()

    def gradient(function: Any) -> Tensor:
        leaf = weight.clone().requires_grad_()
        return torch.autograd.grad(function(leaf, x), leaf)[0]

    expected = gradient(loss)
    assert torch.equal(gradient(torch.compile(loss, backend="aot_eager", fullgraph=True)), expected)
    torch.testing.assert_close(torch.func.grad(loss)(weight, x), expected)
    xs = torch.stack([x, events((T, N, C), 0.3)])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, xs)
    torch.testing.assert_close(each[0], expected)
    with pytest.raises(Exception, match="binary_input must be None or False"):
        gradient(torch.compile(lambda weight, x: loss(weight, 0.5 * x + x[:1]), backend="aot_eager", fullgraph=True))


@pytest.mark.parametrize("outputs", [ops.SPIKES | ops.MEMBRANE | ops.EVENTS, ops.CHECKPOINTS | ops.EVENTS])
def test_opcheck(fused_implementation: Implementation, outputs: int) -> None:
    if fused_implementation in CUDA:
        pytest.skip("tests/test_ops.py has the operators on a GPU")
    x = events((9, 3, 70), 0.2)
    parameters = [each.detach() for each in layer_arguments(x).values()]
    inputs = (*parameters, None, None, torch.tensor(1.0), torch.tensor(1.0), None, None, None)
    numbers = (0.0, None, 0.0, outputs, False, "sequential", 4, None, None, True)
    torch.library.opcheck(ops._library.forward.default, (*inputs, *numbers))
    _, membrane, checkpoints, _, bits, value = ops._library.forward.default(*inputs, *numbers)
    kept = (membrane, None) if outputs & ops.MEMBRANE else (None, checkpoints)
    incoming = (torch.ones(9, 3, H), None, None, *kept, bits, value, None)
    torch.library.opcheck(
        ops._library.backward.default,
        (*incoming, *inputs[1:], 0.0, None, 0.0, 1, 2.0, 0.0, 0b11, False, "sequential", 4, None, None, 70),
    )
