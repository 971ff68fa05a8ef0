"""torch.jit.trace, which PyTorch has deprecated: a traced layer has the layer's numbers and gradients."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from leakypar import LeakyParallel, surrogate

from ..layers import each_backend

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # each check of a size gives one
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize("spike_grad", [surrogate.atan(), surrogate.disabled()], ids=str)
@each_backend
def test_a_trace_passes_its_check_and_trains(backend: str, spike_grad: surrogate.SurrogateGradient) -> None:
    layer = LeakyParallel(4, 3, beta=0.9, threshold=0.1, spike_grad=spike_grad, learn_threshold=True, backend=backend)
    layer = layer.double()
    net = nn.Sequential(layer, nn.Linear(3, 2).double())
    traced = torch.jit.trace(net, torch.randn(6, 2, 4, dtype=torch.float64), check_tolerance=0)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)  # of operators alone, without a function of Python's
    for T, N in ((6, 2), (9, 5)):
        x = torch.randn(T, N, 4, dtype=torch.float64)
        torch.testing.assert_close(loaded(x), net(x))
        for run in (traced, loaded):
            names = [name for name, value in net.named_parameters() if value.requires_grad]
            ours, own = dict(run.named_parameters()), dict(net.named_parameters())
            found = torch.autograd.grad(run(x).sum(), [ours[name] for name in names], allow_unused=True)
            expected = torch.autograd.grad(net(x).sum(), [own[name] for name in names], allow_unused=True)
            for name, one, other in zip(names, found, expected, strict=True):
                assert (one is None or not one.any()) == (other is None or not other.any()), name
                if other is not None:
                    torch.testing.assert_close(one, other)


@each_backend
def test_fx_takes_the_layer_as_a_leaf(backend: str) -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, LeakyParallel) or super().is_leaf_module(module, name)

    net = nn.Sequential(LeakyParallel(4, 3, beta=0.9, threshold=0.1, backend=backend), nn.Linear(3, 2))
    graph = torch.fx.GraphModule(net, Tracer().trace(net))
    x = torch.randn(6, 2, 4)
    assert torch.equal(graph(x), net(x))
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
