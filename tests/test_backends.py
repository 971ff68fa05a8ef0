"""Which backend runs a call, and the path through nn.RNN's kernel."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import leakypar
from leakypar import LeakyParallel, functional, module, ops, reference, rnn, rnn_operator, surrogate

from .layers import each_backend, expected, gradients

C, H = 5, 7
REASON = "there are no kernels in this test"


@pytest.fixture(autouse=True)
def _outside_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.BACKEND_VARIABLE, raising=False)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What ran each call of a layer, and with which options. Nothing is computed: a CUDA build of torch looks for its
    device inside a kernel, even where the tensors are fake."""
    recorded: list[tuple[str, dict[str, Any]]] = []

    def recording(name: str) -> Callable[..., Any]:
        def run(x: torch.Tensor, weight: torch.Tensor, *tensors: Any, **options: Any) -> Any:
            recorded.append((name, options))
            return x.new_empty(*x.shape[:-1], len(weight))

        return run

    monkeypatch.setattr(rnn, "leaky_parallel", recording("rnn"))
    monkeypatch.setattr(functional, "run", recording("fused"))
    return recorded


def build(monkeypatch: pytest.MonkeyPatch, *device_types: str) -> None:
    """As if the kernels had been built for these device types."""
    monkeypatch.setattr(ops, "is_available", lambda device_type: device_type in device_types)
    monkeypatch.setattr(ops, "unavailable_reason", lambda device_type: f"{REASON} for {device_type}")


def call(layer: LeakyParallel, device: str) -> None:
    """Calls a layer as if it and its input lay on a device, which this machine need not have."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {name: torch.empty_like(value, device=device) for name, value in layer.state_dict().items()}
        spikes = torch.func.functional_call(layer, tensors, (torch.empty(4, 2, C, device=device),))
    assert spikes.shape == (4, 2, H)
    assert spikes.device.type == device


# The choice


@pytest.mark.parametrize(
    ("backend", "device", "dense", "ran"),
    [
        ("auto", "cpu", False, "rnn"),
        ("auto", "cuda", False, "fused"),
        ("fused", "cpu", False, "fused"),
        ("fused", "cuda", False, "fused"),
        ("rnn", "cpu", False, "rnn"),
        ("rnn", "cuda", False, "rnn"),
        ("auto", "cpu", True, "rnn"),
        ("auto", "cuda", True, "rnn"),
        ("rnn", "cuda", True, "rnn"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_choice(
    monkeypatch: pytest.MonkeyPatch, runs: list[Any], backend: str, device: str, dense: bool, ran: str
) -> None:
    build(monkeypatch, "cpu", "cuda")
    call(LeakyParallel(C, H, backend=backend, weight_hh_enable=dense), device)
    assert [name for name, _ in runs] == [ran]


def test_the_device_of_each_call_decides(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    build(monkeypatch, "cuda")
    layer = LeakyParallel(C, H)
    for device in ("cpu", "cuda", "cpu"):
        call(layer, device)
    assert [name for name, _ in runs] == ["rnn", "fused", "rnn"]


def test_the_plan_reaches_the_kernels(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    build(monkeypatch, "cuda")
    plan = leakypar.Plan("look_back", "sequential", 5, 6)
    layer = LeakyParallel(C, H, plan=plan, recompute=True)
    call(layer, "cuda")
    call(layer, "cpu")
    assert runs[0][1]["request"] == (*plan[:4], None, None, None)
    assert runs[0][1]["recompute"] is True
    assert not {"request", "recompute"} & runs[1][1].keys()


def test_auto_without_cuda_kernels_warns_once_for_a_reason(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    module._warn_once.cache_clear()
    build(monkeypatch, "cpu")
    with pytest.warns(UserWarning, match="nn.RNN") as warned:
        call(LeakyParallel(C, H), "cuda")
    assert f"{REASON} for cuda" in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(LeakyParallel(C, H), "cuda")
    monkeypatch.setattr(ops, "unavailable_reason", lambda device_type: "another reason")
    with pytest.warns(UserWarning, match="another reason"):
        call(LeakyParallel(C, H), "cuda")
    assert [name for name, _ in runs] == ["rnn"] * 3
    module._warn_once.cache_clear()


def test_the_true_reason_names_the_remedy() -> None:
    if not ops.is_available("cuda"):
        assert "pip install --no-build-isolation ." in ops.unavailable_reason("cuda")
    assert "xpu" in ops.unavailable_reason("xpu")


@pytest.mark.parametrize("backend", ["auto", "rnn"])
def test_nn_rnn_needs_no_kernels(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    build(monkeypatch)
    layer = LeakyParallel(C, H, beta=0.5, backend=backend)
    x = torch.rand(4, 2, C)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x), expected(layer, x))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fused_without_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    build(monkeypatch)
    layer = LeakyParallel(C, H, backend="fused")
    with pytest.raises(RuntimeError, match=f'"fused".*{REASON} for {device}'):
        call(layer, device)


def test_the_backend_can_be_changed(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    build(monkeypatch, "cpu")
    layer = LeakyParallel(C, H, backend="fused")
    call(layer, "cpu")
    layer.backend = "rnn"
    call(layer, "cpu")
    assert [name for name, _ in runs] == ["fused", "rnn"]
    layer.backend = "fused"
    call(layer, "cpu")
    assert [name for name, _ in runs] == ["fused", "rnn", "fused"]


# The environment variable


@pytest.mark.parametrize(
    ("variable", "backend", "dense", "ran"),
    [
        ("fused", "auto", False, "fused"),
        ("rnn", "auto", False, "rnn"),
        ("auto", "auto", False, "rnn"),
        ("fused", "rnn", False, "rnn"),
        ("rnn", "fused", False, "fused"),
        ("fused", "auto", True, "rnn"),
        ("", "auto", False, "rnn"),
    ],
)
def test_the_environment_stands_in_for_auto(
    monkeypatch: pytest.MonkeyPatch, runs: list[Any], variable: str, backend: str, dense: bool, ran: str
) -> None:
    build(monkeypatch, "cpu")
    monkeypatch.setenv("LEAKYPAR_BACKEND", variable)
    layer = LeakyParallel(C, H, backend=backend, weight_hh_enable=dense)
    call(layer, "cpu")
    assert [name for name, _ in runs] == [ran]
    assert layer.backend == backend
    assert pickle.loads(pickle.dumps(layer)).backend == backend


def test_a_bad_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LeakyParallel(C, H)
    monkeypatch.setenv("LEAKYPAR_BACKEND", "cuda")
    with pytest.raises(ValueError, match='LEAKYPAR_BACKEND must be one of "auto", "fused", "rnn", got'):
        LeakyParallel(C, H)
    with pytest.raises(ValueError, match="LEAKYPAR_BACKEND must be one of"):
        call(layer, "cpu")


# Without the extension


WITHOUT_EXTENSION = """
import sys
sys.modules["leakypar._C"] = None  # makes its import fail
import torch, leakypar
from leakypar import LeakyParallel
info = leakypar.build_info()
print(info.variant, info.cuda_version, "snntorch" in sys.modules)
layer = LeakyParallel(5, 7, beta=0.5, learn_beta=True)
spikes = layer(torch.rand(4, 2, 5))
spikes.sum().backward()
print(spikes.shape == (4, 2, 7), layer.rnn.weight_hh_l0.grad.shape == (7, 7))
print(info.reason)
LeakyParallel(5, 7, plan="sequential")
for fused in (
    lambda: LeakyParallel(5, 7, backend="fused")(torch.rand(4, 2, 5)),
    lambda: leakypar.leaky_parallel(torch.rand(4, 2, 5), torch.rand(7, 5), torch.rand(7)),
):
    try:
        fused()
    except RuntimeError as error:
        print(error)
"""


def test_the_package_works_without_its_extension() -> None:
    """And without snntorch, which nothing here imports."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("LEAKYPAR_BACKEND", None)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:leakypar was built", "-c", WITHOUT_EXTENSION],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found, ran, reason, *errors = result.stdout.splitlines()
    assert (found, ran) == ("python None False", "True True")
    assert reason
    assert len(errors) == 2
    assert all("without cpu kernels" in error and reason in error and "pip install" in error for error in errors)


def test_public_names() -> None:
    assert leakypar.__version__ == leakypar.build_info().version
    for name in leakypar.__all__:
        assert hasattr(leakypar, name)
    assert {"LeakyParallel", "Plan", "build_info", "leaky_parallel", "plan", "reference", "surrogate"} <= set(
        leakypar.__all__
    )


# Compilation


# torch instantiates autograd.Function when it traces one, and deprecates doing so.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@each_backend
def test_a_network_compiles_whole(backend: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        LeakyParallel(C, H, beta=0.8, threshold=0.3, learn_beta=True, learn_threshold=True, backend=backend),
        LeakyParallel(H, 3, spike_grad=surrogate.fast_sigmoid(), backend=backend),
    ).double()
    x = torch.rand(6, 2, C, dtype=torch.float64)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    spikes = compiled(x)
    assert torch.equal(spikes, net(x))
    torch.testing.assert_close(gradients(net, spikes), gradients(net, net(x)))


# The path through nn.RNN's kernel


def problem(**replaced: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    arguments = {
        "x": torch.randn(6, 2, C, generator=generator),
        "weight": torch.randn(H, C, generator=generator),
        "decay": 2 * torch.rand(H, generator=generator) - 1,
        "bias_ih": torch.randn(H, generator=generator),
        "bias_hh": torch.randn(H, generator=generator),
    }
    return {name: value.double() for name, value in arguments.items()} | replaced


@pytest.mark.parametrize("missing", [(), ("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh")], ids=str)
@pytest.mark.parametrize("numbers", [{}, {"threshold": 0.4, "gain": 2}], ids=["default", "numbers"])
def test_rnn_is_the_specification(missing: tuple[str, ...], numbers: dict[str, float]) -> None:
    arguments = problem(**dict.fromkeys(missing), **numbers)
    returned = {"return_membrane": True, "return_state": True}
    torch.testing.assert_close(
        rnn.leaky_parallel(**arguments, **returned), reference.leaky_parallel(**arguments, **returned)
    )


def test_rnn_runs_nn_rnn() -> None:
    layer = LeakyParallel(C, H, beta=0.7, backend="rnn")
    plain = nn.RNN(C, H, nonlinearity="relu")
    plain.load_state_dict(layer.rnn.state_dict())
    x, initial = torch.randn(9, 3, C), torch.rand(3, H)
    _, membrane, final = layer(x, initial_membrane=initial, return_membrane=True, return_state=True)
    their_membrane, their_final = plain(x, initial[None])
    assert torch.equal(membrane, their_membrane)
    assert torch.equal(final, their_final[0])


def test_parameters_in_one_buffer_keep_their_values_and_gradients() -> None:
    plain = [torch.randn(shape, requires_grad=True) for shape in ((H, C), (H, H), (H,), (H,))]
    views = rnn_operator._in_one_buffer([plain[0], plain[1].t(), *plain[2:]])
    assert torch.equal(views[1], plain[1].t())
    first, offset = views[0].data_ptr(), 0
    for view, parameter in zip(views, plain, strict=True):
        assert view.is_contiguous()
        assert view.data_ptr() == first + offset * view.element_size()
        offset += parameter.numel()
    cotangents = [torch.randn_like(view) for view in views]
    grads = torch.autograd.grad(views, plain, cotangents)
    assert all(
        torch.equal(g, c) for g, c in zip(grads, [cotangents[0], cotangents[1].t(), *cotangents[2:]], strict=True)
    )


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "weight of rank 1": (
        {"weight": torch.zeros(C).double()},
        ValueError,
        r"weight must have shape \[H, C\], got \[5\]",
    ),
    "weight is None": ({"weight": None}, TypeError, r"weight must be a tensor \[H, C\], got NoneType"),
    "weight in float32": ({"weight": torch.zeros(H, C)}, ValueError, "x must have the dtype of the weights"),
    "decay of another length": ({"decay": torch.zeros(3)}, ValueError, r"decay must have shape \[H\].*7.*got \[3\]"),
    "decay is a number": ({"decay": 0.5}, TypeError, "decay must be a tensor .*got float"),
    "decay of integers": ({"decay": torch.ones(H).int()}, TypeError, "decay must be a tensor of .*got torch.int32"),
    "decay elsewhere": ({"decay": torch.zeros(H, device="meta")}, ValueError, "decay must be on the device of x, cpu"),
    "bias of another length": (
        {"bias_hh": torch.zeros(1)},
        ValueError,
        r"bias_hh must have shape \[H\] = \[7\].*\[1\]",
    ),
    "bias is a number": ({"bias_ih": 0.0}, TypeError, r"bias_ih must be a tensor \[H\], got float"),
    "threshold of another length": (
        {"threshold": torch.ones(3)},
        ValueError,
        r"threshold must be one value.*got \[3\]",
    ),
    "threshold is a matrix": ({"threshold": torch.ones(1, H)}, ValueError, r"threshold must be .*got \[1, 7\]"),
    "threshold is NaN": ({"threshold": float("nan")}, ValueError, "threshold must be a number, got NaN"),
    "threshold is None": ({"threshold": None}, TypeError, "threshold must be a tensor .*or a number, got NoneType"),
    "gain is a bool": ({"gain": True}, TypeError, "gain must be a tensor .*or a number, got bool"),
    "gain elsewhere": ({"gain": torch.ones(H, device="meta")}, ValueError, "gain must be on the device of x"),
    "dropout above 1": ({"dropout": 2}, ValueError, r"dropout must be in \[0, 1\], got 2"),
    "dropout is None": ({"dropout": None}, TypeError, r"dropout must be a number in \[0, 1\], got NoneType"),
    "spike_grad is a number": ({"spike_grad": 1.0}, TypeError, "spike_grad must be None or a callable, got float"),
}


@pytest.mark.parametrize("function", [rnn.leaky_parallel, functional.leaky_parallel], ids=["rnn", "fused"])
@pytest.mark.parametrize(("replaced", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments_of_the_functions(
    function: Callable[..., Any], replaced: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(**problem(**replaced))


# On a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnCuda:
    kernels = pytest.mark.skipif(not ops.is_available("cuda"), reason="extension not built for CUDA")
    each_backend = pytest.mark.parametrize("backend", ["rnn", pytest.param("fused", marks=kernels)])

    @kernels
    def test_auto_runs_the_kernels(self, runs: list[Any]) -> None:
        LeakyParallel(C, H, device="cuda")(torch.rand(4, 2, C, device="cuda"))
        assert [name for name, _ in runs] == ["fused"]

    @each_backend
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(9, 3), (9,), (0, 3), (9, 0)], ids=str)
    def test_a_layer_is_the_specification(self, backend: str, bias: bool, shape: tuple[int, ...]) -> None:
        # In evaluation, where cuDNN by itself would keep nothing for a backward pass. A warning about cuDNN's weight
        # buffer would fail the test, as every warning does.
        torch.manual_seed(0)
        options: dict[str, Any] = {"learn_beta": True, "learn_threshold": True, "backend": backend}
        layer = LeakyParallel(C, H, beta=0.8, threshold=0.3, bias=bias, **options).double().eval()
        x, initial = torch.randn(*shape, C).double(), torch.rand(*shape[1:], H).double()
        returned = {"return_membrane": True, "return_state": True}
        theirs = expected(layer, x, initial_membrane=initial, **returned)
        their_gradients = gradients(layer, *theirs)
        layer.cuda()
        ours = layer(x.cuda(), initial_membrane=initial.cuda(), **returned)
        assert torch.equal(ours[0].cpu(), theirs[0])
        torch.testing.assert_close(tuple(output.cpu() for output in ours), theirs)
        ours_gradients = gradients(layer, *(output.cpu() for output in ours))
        torch.testing.assert_close({name: value.cpu() for name, value in ours_gradients.items()}, their_gradients)

    def test_a_dense_layer_is_the_specification(self) -> None:
        torch.manual_seed(0)
        layer = LeakyParallel(C, H, beta=0.1, weight_hh_enable=True, learn_beta=True).double()
        x = torch.randn(9, 3, C).double()
        theirs = expected(layer, x)
        assert torch.equal(layer.cuda()(x.cuda()).cpu(), theirs)

    @each_backend
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_sets_the_dtype(self, backend: str, dtype: torch.dtype) -> None:
        layer = LeakyParallel(C, H, beta=0.8, learn_beta=True, backend=backend, device="cuda")
        with torch.autocast("cuda", dtype=dtype):
            outputs = layer(torch.rand(9, 3, C, device="cuda"), return_membrane=True, return_state=True)
        assert [output.dtype for output in outputs] == [dtype, dtype, torch.float32]
        outputs[0].float().sum().backward()
        assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}

    def test_devices_that_differ_are_named(self) -> None:
        layer = LeakyParallel(C, H, device="cuda", backend="rnn")
        with pytest.raises(ValueError, match="weight must be on the device of x, cpu, got cuda:0"):
            layer(torch.rand(4, 2, C))
