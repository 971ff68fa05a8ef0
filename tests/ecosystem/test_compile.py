"""torch.compile: whole graphs, the same for every number of time steps, and the numbers of eager calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leakypar import LeakyParallel

from ..layers import each_backend, without_kernels

pytestmark = pytest.mark.filterwarnings(  # of torch.compile's own internals
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)

C, H = 12, 16
LEARNED = {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A compiler of graphs that counts those it is given, and their operators."""

    def __init__(self) -> None:
        self.operators: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.operators.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph


def network(backend: str, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        LeakyParallel(C, H, beta=0.9, threshold=0.3, backend=backend, **(LEARNED | options)),
        LeakyParallel(H, 5, backend=backend, **options),
    )


def assert_same_step(compiled: Callable[..., Any], eager: nn.Module, *inputs: Tensor) -> None:
    """Equal outputs, and the gradients of all inputs and parameters."""

    def step(run: Callable[..., Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        asked = [each.clone().requires_grad_() for each in inputs]
        out = run(*asked)
        outputs = out if isinstance(out, tuple) else (out,)
        loss = sum(((i + 1) * output.float() ** 2).sum() for i, output in enumerate(outputs))
        wanted = [*asked, *(each for each in eager.parameters() if each.requires_grad)]
        return outputs, torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)

    torch.testing.assert_close(step(compiled), step(eager))


@each_backend
def test_two_graphs_serve_every_length(backend: str) -> None:
    net, counting = network(backend), Counting()
    compiled = torch.compile(net, fullgraph=True, backend=counting)
    for T, N in ((25, 3), (50, 7), (100, 4), (33, 8)):
        assert_same_step(compiled, net, torch.randn(T, N, C))
    assert len(counting.operators) == 2  # as it came, then with sizes that vary
    assert max(counting.operators) < 80  # and not so many for each time step


@without_kernels
@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (-math.inf, math.inf)], ids=str)
def test_other_bounds_compile_with_sizes_that_vary(bounds: tuple[float, float]) -> None:
    net = network("fused", membrane_bounds=bounds)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (6, 9):
        assert_same_step(compiled, net, torch.randn(T, 3, C))


@pytest.mark.parametrize("mode", ["eval", "train"])
@each_backend
def test_the_default_compiler_trains_at_every_length(backend: str, mode: str) -> None:
    net = network(backend).train(mode == "train")
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    for T, N in ((6, 3), (9, 2)):
        x = torch.randn(T, N, C)
        if mode == "train":
            assert_same_step(compiled, net, x)
        else:
            with torch.no_grad():
                torch.testing.assert_close(compiled(x), net(x))


class Started(nn.Module):
    """A layer whose initial membrane is an input like x."""

    def __init__(self, layer: LeakyParallel) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, initial_membrane: Tensor) -> Any:
        return self.layer(x, initial_membrane=initial_membrane, return_membrane=True, return_state=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"compact_decay": True}, {"weight_hh_enable": True}],
    ids=["plain", "no bias", "compact", "dense"],
)
def test_every_form_of_the_rnn_path(options: dict[str, Any]) -> None:
    layer = LeakyParallel(C, H, beta=0.05, threshold=0.3, backend="rnn", **LEARNED, **options)
    started = Started(layer.double())
    compiled = torch.compile(started, fullgraph=True, backend="aot_eager")
    assert_same_step(compiled, started, torch.randn(7, 3, C).double(), torch.rand(3, H).double())


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)], ids=["half", "bfloat16"])
def test_16_bit_layers_differ_by_rounding_only(dtype: torch.dtype, eps: float) -> None:
    layer = LeakyParallel(C, H, beta=0.5, threshold=0.3, backend="rnn", dtype=dtype, **LEARNED)
    x = torch.randn(7, 3, C, dtype=dtype)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def gradients(run: Callable[..., Any]) -> tuple[Tensor, ...]:
        membrane = run(x, return_membrane=True)[1]
        return torch.autograd.grad(membrane.sum(), [layer.rnn.weight_ih_l0, layer.rnn.weight_hh_l0])

    for ours, expected in zip(gradients(compiled), gradients(layer), strict=True):
        # Sums of 21 products, each rounded a few times on its way, in another order.
        assert (ours - expected).norm() <= 4 * eps * expected.norm()


@each_backend
def test_nothing_to_do(backend: str) -> None:
    layer = LeakyParallel(C, H, threshold=0.3, backend=backend, **LEARNED)
    started = Started(layer)
    compiled = torch.compile(started, fullgraph=True, backend="aot_eager")
    for T, N in ((0, 3), (4, 0)):
        assert_same_step(compiled, started, torch.randn(T, N, C), torch.rand(N, H))


def test_eager_calls_through_nn_rnn_still_have_second_derivatives() -> None:
    layer = LeakyParallel(3, 2, beta=0.7, threshold=0.3, backend="rnn", learn_beta=True).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, return_membrane=True)[1], (x,))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(x, return_membrane=True)[1].pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward|backward a second time"):
        torch.autograd.grad(first.sum(), x)
