"""ONNX: either exporter of PyTorch, and what ONNX Runtime makes of the file, at several sizes."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import leakypar.onnx
from leakypar import LeakyParallel

from ..layers import each_backend, without_kernels

onnx = pytest.importorskip("onnx", reason="needs the extra: pip install leakypar[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install leakypar[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra: pip install leakypar[onnx]")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of torch's own internals
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # each check of a size gives one
]

C, H = 12, 16
SHAPES = [(20, 3), (50, 7), (1, 1)]
SIZES = {0: Dim("T", min=1), 1: Dim("N", min=1)}


class Network(nn.Module):
    def __init__(self, backend: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.first = LeakyParallel(C, H, beta=0.9, threshold=0.05, backend=backend, **options)
        self.second = LeakyParallel(H, 5, beta=0.8, threshold=0.05, backend=backend, **options)

    def forward(self, x: Tensor, initial_membrane: Tensor) -> tuple[Tensor, ...]:
        spikes, membrane, final = self.first(
            x, initial_membrane=initial_membrane, return_membrane=True, return_state=True
        )
        return self.second(spikes), membrane, final


def inputs(T: int, N: int) -> tuple[Tensor, Tensor]:
    return torch.randn(T, N, C), torch.rand(N, H)


def legacy(net: nn.Module) -> Any:
    file = io.BytesIO()
    names = ["x", "initial_membrane"]
    outputs = ["spikes", "membrane", "final"]
    steps, batch = {0: "T", 1: "N"}, {0: "N"}
    axes = {"x": steps, "initial_membrane": batch, "spikes": steps, "membrane": steps, "final": batch}
    torch.onnx.export(
        net, inputs(20, 3), file, dynamo=False, input_names=names, output_names=outputs, dynamic_axes=axes
    )
    return onnx.load_from_string(file.getvalue())


def dynamo(net: nn.Module) -> Any:
    exported = torch.onnx.export(net, inputs(20, 3), dynamo=True, dynamic_shapes=(SIZES, {0: SIZES[1]}), verbose=False)
    return exported.model_proto


def of_a_program(net: nn.Module) -> Any:
    program = torch.export.export(net, inputs(20, 3), dynamic_shapes=(SIZES, {0: SIZES[1]}))
    table = leakypar.onnx.translation_table()
    return torch.onnx.export(program, (), custom_translation_table=table, verbose=False).model_proto


def assert_equal_in_onnxruntime(model: Any, net: nn.Module) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for shape in SHAPES:
        given = inputs(*shape)
        found = session.run(None, dict(zip(names, (each.numpy() for each in given), strict=True)))
        with torch.no_grad():
            expected = net(*given)
        for ours, eager in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, eager.numpy(), rtol=1e-5, atol=1e-5)
        assert found[1].any()
        assert found[0].any() or shape == (1, 1)


@pytest.mark.parametrize("exporter", [legacy, dynamo, of_a_program])
@each_backend
def test_a_network_with_its_state(backend: str, exporter: Any) -> None:
    net = Network(backend, {}).eval()
    model = exporter(net)
    onnx.checker.check_model(model)
    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count("RNN") == 2
    assert len(nodes) < 60  # none for each time step
    for node in model.graph.node:
        if node.op_type == "RNN":
            assert [list(each.strings) for each in node.attribute if each.name == "activations"] == [[b"Relu"]]
    assert_equal_in_onnxruntime(model, net)


@pytest.mark.parametrize("options", [{"surrogate_disable": True}, {"bias": False, "compact_decay": True}], ids=str)
@pytest.mark.parametrize("exporter", [legacy, dynamo, of_a_program])
@each_backend
def test_forms(backend: str, exporter: Any, options: dict[str, Any]) -> None:
    net = Network(backend, options).eval()
    assert_equal_in_onnxruntime(exporter(net), net)


@pytest.mark.parametrize("bounds", [(0.0, 1.5), (-0.25, 0.25), (-math.inf, math.inf)], ids=str)
@pytest.mark.parametrize("exporter", [dynamo, of_a_program])
def test_bounds_of_the_membrane(exporter: Any, bounds: tuple[float, float]) -> None:
    """One node still; the same network without these bounds is another."""
    net = Network("auto", {"membrane_bounds": bounds}).eval()
    model = exporter(net)
    assert [node.op_type for node in model.graph.node].count("RNN") == 2
    onnx.checker.check_model(model)
    assert_equal_in_onnxruntime(model, net)


@pytest.mark.parametrize("exporter", [legacy, dynamo, of_a_program])
def test_a_dense_recurrence(exporter: Any) -> None:
    net = Network("auto", {"weight_hh_enable": True}).eval()
    with torch.no_grad():
        net.first.rnn.weight_hh_l0.normal_(0, 0.1)
        net.second.rnn.weight_hh_l0.normal_(0, 0.1)
    assert_equal_in_onnxruntime(exporter(net), net)


@each_backend
def test_a_layer_is_six_nodes(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.9, threshold=torch.linspace(0.1, 0.5, H), backend=backend).eval()
    x, _ = inputs(20, 3)
    exported = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=(SIZES,), verbose=False)
    nodes = [node.op_type for node in exported.model_proto.graph.node]
    assert nodes == ["RNN", "Squeeze", "Sub", "Greater", "Cast", "Mul"]


@without_kernels
def test_dropout_of_a_program_that_trains_is_refused() -> None:
    net = Network("fused", {"dropout": 0.5}).train()
    with pytest.raises(Exception, match=r"export after network\.eval\(\)"):
        of_a_program(net)


class Call(nn.Module):
    def __init__(self, layer: LeakyParallel, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, **self.options)


@each_backend
def test_what_onnx_cannot_say_is_refused(backend: str) -> None:
    file, x = io.BytesIO(), torch.randn(5, 3, C)
    bounded = LeakyParallel(C, H, membrane_bounds=(-1.0, 2.0), backend="auto" if backend == "rnn" else backend)
    with pytest.raises(ValueError, match=r"membrane_bounds must be \(0, b\), .* which ONNX's RNN has"):
        torch.onnx.export(Call(bounded), (x,), file, dynamo=False)
    of_lengths = Call(LeakyParallel(C, H, backend=backend), lengths=torch.tensor([5, 2, 0]))
    with pytest.raises(ValueError, match="lengths must be None: sequences of different lengths are not exported"):
        torch.onnx.export(of_lengths, (x,), file, dynamo=False)
