"""torch.export and AOTInductor: programs for every length, whose gradients are those of the layer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import cpp_extension

from leakypar import LeakyParallel, surrogate
from leakypar.build_info import extension

from ..layers import each_backend, without_kernels

pytestmark = pytest.mark.filterwarnings(  # of torch's own internals
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)

C, H = 12, 16
LEARNED = {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True}
SHAPES = [(20, 3), (50, 7), (1, 1)]


def any_length() -> tuple[dict[int, Any], ...]:
    return ({0: Dim("T", min=1, max=4096), 1: Dim("N", min=1, max=512)},)


class Network(nn.Module):
    """Two layers; the first also gives its membrane, the second the final one."""

    def __init__(self, backend: str, **options: Any) -> None:
        super().__init__()
        self.first = LeakyParallel(C, H, beta=0.9, threshold=0.3, backend=backend, **LEARNED, **options)
        self.second = LeakyParallel(H, 5, beta=0.8, threshold=0.3, backend=backend, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        spikes, membrane = self.first(x, return_membrane=True)
        spikes, final = self.second(spikes, return_state=True)
        return spikes, membrane, final


def exported(net: nn.Module, strict: bool = False) -> ExportedProgram:
    x = torch.randn(20, 3, C, dtype=next(net.parameters()).dtype)
    return export(net, (x,), dynamic_shapes=any_length(), strict=strict)


def gradients(run: nn.Module, names: list[str], x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    loss = sum((output**2).sum() for output in run(x))
    parameters = dict(run.named_parameters())
    return torch.autograd.grad(
        loss, [x, *(parameters[name] for name in names)], allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@each_backend
def test_an_exported_network_runs_at_every_length(backend: str, strict: bool) -> None:
    net = Network(backend).eval()
    with torch.no_grad():
        program = exported(net, strict).module()
        for T, N in SHAPES:
            x = torch.randn(T, N, C)
            torch.testing.assert_close(program(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@each_backend
def test_an_exported_network_trains_at_every_length(backend: str, strict: bool) -> None:
    net = Network(backend).double()
    program = exported(net, strict).module()
    names = [name for name, value in net.named_parameters() if value.requires_grad]
    for T, N in SHAPES:
        x = torch.randn(T, N, C, dtype=torch.float64)
        torch.testing.assert_close(gradients(program, names, x), gradients(net, names, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@each_backend
def test_every_surrogate_keeps_its_gradient(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 2, C, dtype=dtype)
    for spike_grad in (surrogate.fast_sigmoid(), surrogate.LSO(), surrogate.straight_through_estimator()):
        layer = LeakyParallel(C, H, beta=0.5, threshold=0.3, spike_grad=spike_grad, backend=backend, dtype=dtype)
        program = export(nn.Sequential(layer), (x,)).module()
        parameter = dict(program.named_parameters())["0.rnn.weight_ih_l0"]
        ours = torch.autograd.grad(program(x).sum(), parameter)
        expected = torch.autograd.grad(layer(x).sum(), layer.rnn.weight_ih_l0)
        tolerance = {} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02 * float(expected[0].abs().max())}
        torch.testing.assert_close(ours, expected, **tolerance)


@each_backend
def test_what_would_lose_its_gradient_is_refused(backend: str) -> None:
    own = surrogate.custom_surrogate(lambda v, grad, spikes: grad)
    layer = LeakyParallel(C, H, spike_grad=own, backend=backend)
    with pytest.raises(RuntimeError, match="export would lose its gradient: export under torch.no_grad()"):
        exported(layer)
    with torch.no_grad():
        x = torch.randn(7, 2, C)
        assert torch.equal(exported(layer).module()(x), layer(x))


@each_backend
def test_dropout_is_exported(backend: str) -> None:
    layer = LeakyParallel(C, H, beta=0.9, threshold=0.1, dropout=0.5, backend=backend)
    program = exported(layer).module()
    x = torch.randn(40, 8, C)
    torch.manual_seed(1)
    first = program(x).detach()
    torch.manual_seed(1)
    assert torch.equal(program(x), first)
    assert not torch.equal(program(x), first)
    with torch.no_grad():
        kept = float(first.sum() / layer.eval()(x).sum())
    assert 0.3 < kept < 0.8


def test_an_exported_program_keeps_the_membrane_and_says_so() -> None:
    layer = LeakyParallel(C, H, backend="fused", recompute=True)
    with pytest.warns(UserWarning, match="keeps the membrane: recompute=True does not reach it"):
        exported(layer)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[nn.Module, str]]:
    """A network and its package, made once for each backend and grad mode."""

    @cache
    def made(backend: str, grad: bool) -> tuple[nn.Module, str]:
        net = Network(backend).eval()
        with torch.set_grad_enabled(grad):
            program = exported(net)
        path = str(tmp_path_factory.mktemp("package") / "network.pt2")
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        return net, torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=quick)

    return made


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@each_backend
def test_a_package_of_aot_inductor_runs_at_every_length(backend: str, grad: bool, packaged: Any) -> None:
    net, package = packaged(backend, grad)
    with torch.no_grad():
        run = torch._inductor.aoti_load_package(package)
        for T, N in SHAPES:
            x = torch.randn(T, N, C)
            torch.testing.assert_close(run(x), list(net(x)))


@without_kernels
def test_cpp_runs_a_package_without_python(packaged: Any, tmp_path: Path) -> None:
    compiler, python = cpp_extension.get_cxx_compiler(), sysconfig.get_config_vars()
    if sys.platform != "linux" or shutil.which(compiler) is None:
        pytest.skip(f"no compiler of C++ for Linux: {compiler}")
    if not python["Py_ENABLE_SHARED"]:
        pytest.skip("this Python has no shared library, which the extension's symbols are linked to")
    folders = [*cpp_extension.library_paths(), python["LIBDIR"]]
    program = tmp_path / "run_package"
    subprocess.run(
        [compiler, "-std=c++20", "-O0", Path(__file__).with_name("run_package.cpp"), "-o", program]
        + [f"-isystem{folder}" for folder in cpp_extension.include_paths()]
        + [flag for folder in folders for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
        # The package and the extension find these in the program, which itself calls nothing of the first and the last.
        + ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", f"-lpython{python['LDVERSION']}", "-ldl"],
        check=True,
    )
    net, package = packaged("fused", False)
    for T, N in SHAPES:
        arguments = [extension().__file__, package, *map(str, (T, N, C))]
        run = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
        spikes = net(torch.ones(T, N, C))[0]
        assert torch.equal(torch.tensor([float(value) for value in run.stdout.split()]), spikes.flatten())
        assert spikes.any() or T == 1
