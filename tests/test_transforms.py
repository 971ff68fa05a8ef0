"""The transforms of torch.func, and the graph that a call leaves behind, on both backends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vjp, vmap

import leakypar
from leakypar import LeakyParallel, ops, surrogate

from .implementations import Implementation
from .layers import each_backend, without_kernels
from .problems import draw

C, H = 5, 7
DOUBLE = {"dtype": torch.float64}


def network(backend: str, seed: int = 0, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    learned = {"beta": 0.8, "threshold": 0.4, "learn_beta": True, "learn_threshold": True, "backend": backend}
    first = LeakyParallel(C, H, **(learned | options), **DOUBLE)
    return nn.Sequential(
        first, LeakyParallel(H, 3, threshold=0.1, learn_graded_spikes_factor=True, backend=backend, **DOUBLE)
    )


def sequence(*shape: int, seed: int = 3) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def assert_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    assert all(value.count_nonzero() > 0 for value in theirs.values())


def by_autograd(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    named = {name: value for name, value in net.named_parameters() if value.requires_grad}
    return dict(zip(named, torch.autograd.grad(net(x).square().sum(), list(named.values())), strict=True))


@each_backend
@pytest.mark.parametrize("recompute", [False, True])
def test_grad_is_autograds(backend: str, recompute: bool) -> None:
    if recompute and backend == "rnn":
        pytest.skip("nn.RNN keeps its membrane")
    net, x = network(backend, recompute=recompute), sequence(9, 2, C)
    learned = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}
    found = grad(lambda values: functional_call(net, values, (x,)).square().sum())(learned)
    assert_gradients(found, by_autograd(net, x))


@each_backend
def test_vjp_is_autograds(backend: str) -> None:
    net, x = network(backend), sequence(9, 2, C)
    spikes, pull = vjp(net, x)
    assert torch.equal(spikes, net(x))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf), leaf, torch.ones_like(spikes))
    torch.testing.assert_close(pull(torch.ones_like(spikes))[0], expected)
    assert expected.count_nonzero() > 0


@each_backend
@pytest.mark.parametrize("options", [{}, {"recompute": True}], ids=["kept", "recomputed"])
def test_gradients_of_each_sample_are_those_of_a_loop(backend: str, options: dict[str, Any]) -> None:
    if options and backend == "rnn":
        pytest.skip("nn.RNN keeps its membrane")
    net, samples = network(backend, **options), sequence(4, 80, C)  # [B, T, C]
    learned = {name: value.detach() for name, value in net.named_parameters() if value.requires_grad}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, values, (x,)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(learned, samples)
    loop = [by_autograd(net, x) for x in samples]
    assert_gradients(found, {name: torch.stack([each[name] for each in loop]) for name in found})


@each_backend
@pytest.mark.parametrize("shared", [True, False], ids=["one input", "an input each"])
def test_an_ensemble_learns_as_a_loop_does(backend: str, shared: bool) -> None:
    nets = [network(backend, seed) for seed in range(3)]
    values, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    x = sequence(9, 2, C) if shared else sequence(3, 9, 2, C)

    def run(values: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(nets[0], (values, buffers), (x,))

    spikes = vmap(run, in_dims=(0, 0, None if shared else 0))(values, buffers, x)
    spikes.square().sum().backward()
    inputs = [x] * 3 if shared else list(x)
    assert torch.equal(spikes, torch.stack([net(each) for net, each in zip(nets, inputs, strict=True)]))
    loop = [by_autograd(net, each) for net, each in zip(nets, inputs, strict=True)]
    found = {name: values[name].grad for name in loop[0]}
    assert_gradients(found, {name: torch.stack([each[name] for each in loop]) for name in found})


@each_backend
def test_a_mapped_input_is_a_larger_batch(backend: str) -> None:
    """Mapped dimensions anywhere, an initial membrane for each or for all, and every output."""
    layer = LeakyParallel(C, H, beta=0.8, threshold=0.3, learn_beta=True, backend=backend, **DOUBLE)
    x, initial = sequence(6, 2, 4, C).requires_grad_(), sequence(2, 4, H, seed=4).abs().requires_grad_()

    def run(x: Tensor, initial: Tensor) -> tuple[Tensor, ...]:
        return layer(x, initial_membrane=initial, return_membrane=True, return_state=True)

    for dims in ((1, 0), (2, 1), (1, None)):
        first = initial if dims[1] is not None else initial[0]
        outputs = vmap(run, in_dims=dims)(x, first)
        for i in range(x.shape[dims[0]]):
            expected = run(x.select(dims[0], i), first if dims[1] is None else first.select(dims[1], i))
            torch.testing.assert_close(tuple(output[i] for output in outputs), expected)
        weights = [torch.randn_like(output) for output in outputs]
        found = torch.autograd.grad(outputs, (x, initial), weights)
        loop = [
            run(x.select(dims[0], i), first if dims[1] is None else first.select(dims[1], i))
            for i in range(x.shape[dims[0]])
        ]
        stacked = [torch.stack(each) for each in zip(*loop, strict=True)]
        torch.testing.assert_close(found, torch.autograd.grad(stacked, (x, initial), weights))


@without_kernels
def test_dropout_under_vmap_asks_how_random() -> None:
    layer = LeakyParallel(C, H, beta=0.8, threshold=0.3, dropout=0.5, backend="fused", **DOUBLE)
    x = sequence(9, 2, C).expand(3, 9, 2, C)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(layer)(x)
    same, different = (vmap(layer, randomness=kind)(x) for kind in ("same", "different"))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


@each_backend
def test_batched_gradients_are_those_of_a_loop(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.8, threshold=0.3, learn_beta=True, backend=backend, **DOUBLE)
    x = sequence(6, 2, C).requires_grad_()
    spikes = layer(x)
    weights = sequence(3, *spikes.shape, seed=5)
    leaves = (x, layer.rnn.weight_ih_l0)
    found = torch.autograd.grad(spikes, leaves, weights, is_grads_batched=True, retain_graph=True)
    loop = [torch.autograd.grad(spikes, leaves, each, retain_graph=True) for each in weights]
    torch.testing.assert_close(found, tuple(torch.stack(each) for each in zip(*loop, strict=True)))


def test_a_second_derivative_is_an_error_under_transforms(fused_implementation: Implementation) -> None:
    problem = draw(9, 2, 3, 5).to(torch.float64, fused_implementation.device)
    arguments = {name: tensor.detach() for name, tensor in problem.tensors().items()}
    x = arguments.pop("x")

    def loss(x: Tensor) -> Tensor:
        return leakypar.leaky_parallel(x, **arguments).sum()

    with pytest.raises(RuntimeError, match="no second derivative"):
        grad(lambda x: grad(loss)(x).sum())(x)
    with pytest.raises(RuntimeError, match="jvp"):
        jvp(loss, (x,), (x,))


def test_an_operator_by_itself_is_refused(fused_implementation: Implementation) -> None:
    tensors = draw(9, 2, 3, 5).to(torch.float64, fused_implementation.device).tensors()
    x, *others = (tensor.detach() for tensor in tensors.values())

    def membrane(x: Tensor) -> Tensor:
        return ops.forward(ops.Inputs(x, *others), ops.Settings(), ops.MEMBRANE)[1].sum()

    assert membrane(x).isfinite()
    for transformed, given in ((grad(membrane), x), (vmap(membrane), x[None])):
        with pytest.raises(RuntimeError, match="no rule for a transform .*leakypar.leaky_parallel"):
            transformed(given)


# The graph of a call


@each_backend
def test_the_gradient_of_the_spikes_flows_through_the_returned_membrane(backend: str) -> None:
    torch.manual_seed(0)
    layer = LeakyParallel(
        C, H, beta=0.8, threshold=torch.rand(H), learn_beta=True, learn_threshold=True, backend=backend, **DOUBLE,
        graded_spikes_factor=torch.rand(H), learn_graded_spikes_factor=True, spike_grad=surrogate.fast_sigmoid(3.0),
    )  # fmt: skip
    x = sequence(9, 2, C).requires_grad_()
    spikes, membrane = layer(x, return_membrane=True)
    weights = torch.randn_like(spikes)
    (through,) = torch.autograd.grad(spikes, membrane, weights, retain_graph=True)
    v = membrane.detach() - layer.threshold.detach()
    expected = weights * layer.graded_spikes_factor.detach() * layer.spike_grad.derivative(v)
    torch.testing.assert_close(through, expected)

    leaves = [x, *(value for value in layer.parameters() if value.requires_grad)]
    torch.testing.assert_close(
        torch.autograd.grad(spikes, leaves, weights, retain_graph=True),
        torch.autograd.grad(layer(x), leaves, weights),  # through the kernel, where there is one
    )
    membrane.register_hook(lambda grad: 2 * grad)
    (doubled,) = torch.autograd.grad(spikes, x, weights, retain_graph=True)
    (plain,) = torch.autograd.grad(layer(x), x, weights)
    torch.testing.assert_close(doubled, 2 * plain)
    membrane.retain_grad()
    spikes.backward(weights)
    assert membrane.grad is not None


def test_through_the_membrane_with_dropout_as_in_the_kernel(fused_implementation: Implementation) -> None:
    problem = draw(40, 2, 3, 5).to(torch.float64, fused_implementation.device)
    leaves = list(problem.tensors().values())
    grads = []
    for p in (0.4, 1.0):
        for returned in (False, True):
            torch.manual_seed(7)
            found = leakypar.leaky_parallel(**problem.arguments(), dropout=p, return_membrane=returned)
            spikes = found[0] if returned else found
            grads.append([spikes, *torch.autograd.grad(spikes, leaves, torch.ones_like(spikes))])
        torch.testing.assert_close(*grads[-2:])
    assert grads[0][1].count_nonzero() > 0


@each_backend
def test_no_gradient_is_none_rather_than_zeros(backend: str) -> None:
    layer = LeakyParallel(
        C, H, beta=0.8, learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True, backend=backend
    )
    _, membrane, final = layer(torch.rand(6, 2, C), return_membrane=True, return_state=True)
    (membrane.sum() + final.sum()).backward()
    assert layer.threshold.grad is None
    assert layer.graded_spikes_factor.grad is None
    assert layer.rnn.weight_ih_l0.grad is not None
    assert layer.rnn.weight_hh_l0.grad is not None

    layer = LeakyParallel(
        C, H, surrogate_disable=True, learn_threshold=True, learn_graded_spikes_factor=True, backend=backend
    )
    layer(torch.rand(6, 2, C)).sum().backward()
    assert layer.threshold.grad is None
    assert layer.rnn.weight_ih_l0.grad is None
    assert layer.graded_spikes_factor.grad is not None


@each_backend
@pytest.mark.parametrize("name", ["threshold", "graded_spikes_factor"])
def test_the_membrane_has_a_graph_only_where_a_gradient_reaches_it(backend: str, name: str) -> None:
    layer = LeakyParallel(C, H, beta=0.8, backend=backend, **{f"learn_{name}": True})
    layer.rnn.requires_grad_(False)
    spikes, membrane, final = layer(torch.rand(6, 2, C), return_membrane=True, return_state=True)
    assert spikes.requires_grad
    assert not membrane.requires_grad
    assert not final.requires_grad
    spikes.sum().backward()
    assert getattr(layer, name).grad is not None


@each_backend
def test_an_initial_membrane_of_inference_mode(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.8, backend=backend)
    x = torch.rand(6, 2, C)
    with torch.inference_mode():
        _, state = layer(x, return_state=True)
    spikes = layer(x, initial_membrane=state)
    spikes.sum().backward()
    assert layer.rnn.weight_ih_l0.grad is not None
