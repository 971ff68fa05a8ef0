"""Surrogate gradients: against snntorch, against exact arithmetic, and the C++ header against Python."""

from __future__ import annotations

import copy
import ctypes
import inspect
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from leakypar import surrogate as ours

snntorch = pytest.importorskip("snntorch")
theirs = snntorch.surrogate
hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

ROOT = Path(__file__).resolve().parent.parent


def scaled(input_: Tensor, grad_input: Tensor, spikes: Tensor) -> Tensor:
    """A user's own surrogate gradient, which reads all that it is given."""
    return grad_input / (3 * input_.abs() + 1) ** 2 + spikes


# Every surrogate that snntorch can run, with its equal here: the defaults, then other parameters.
PAIRS: dict[str, tuple[ours.SurrogateGradient, Callable[[Tensor], Tensor]]] = {
    "atan": (ours.atan(), theirs.atan()),
    "atan(5)": (ours.atan(alpha=5), theirs.atan(alpha=5)),
    "fast_sigmoid": (ours.fast_sigmoid(), theirs.fast_sigmoid()),
    "fast_sigmoid(2.5)": (ours.fast_sigmoid(slope=2.5), theirs.fast_sigmoid(slope=2.5)),
    "sigmoid": (ours.sigmoid(), theirs.sigmoid()),
    "sigmoid(4)": (ours.sigmoid(slope=4), theirs.sigmoid(slope=4)),
    "sigmoid(-4)": (ours.sigmoid(slope=-4), theirs.sigmoid(slope=-4)),
    "straight_through_estimator": (ours.straight_through_estimator(), theirs.straight_through_estimator()),
    "triangular": (ours.triangular(), theirs.triangular()),
    "triangular(0.3)": (ours.triangular(threshold=0.3), theirs.triangular(threshold=0.3)),
    "heaviside": (ours.heaviside(), theirs.heaviside()),
    "spike_rate_escape": (ours.spike_rate_escape(), theirs.spike_rate_escape()),
    "spike_rate_escape(2, 7)": (ours.spike_rate_escape(beta=2, slope=7), theirs.spike_rate_escape(beta=2, slope=7)),
    "SFS": (ours.SFS(), theirs.SFS()),
    "SFS(3, 0.5)": (ours.SFS(slope=3, B=0.5), theirs.SFS(slope=3, B=0.5)),
    "SSO": (ours.SSO(), theirs.SSO()),
    "SSO(0.1, 0.5)": (ours.SSO(mean=0.1, variance=0.5), theirs.SSO(mean=0.1, variance=0.5)),
    "custom_surrogate": (ours.custom_surrogate(scaled), theirs.custom_surrogate(scaled)),
}

# Every surrogate of the kernels, with its derivative in textbook form, to be evaluated without rounding or overflow.
# The parameters are exact in every binary format.
EXACT: list[tuple[ours.SurrogateGradient, Callable[[Any], Any]]] = [
    (ours.disabled(), lambda v: 0),
    (ours.atan(), lambda v: 1 / (1 + (mpmath.pi * v) ** 2)),
    (ours.atan(-0.5), lambda v: -0.25 / (1 + (mpmath.pi * v / 4) ** 2)),
    (ours.fast_sigmoid(), lambda v: 1 / (25 * abs(v) + 1) ** 2),
    (ours.fast_sigmoid(0), lambda v: 1),
    (ours.sigmoid(), lambda v: 25 * mpmath.exp(-25 * v) / (mpmath.exp(-25 * v) + 1) ** 2),
    (ours.sigmoid(-4), lambda v: -4 * mpmath.exp(4 * v) / (mpmath.exp(4 * v) + 1) ** 2),
    (ours.straight_through_estimator(), lambda v: 1),
    (ours.triangular(0.75), lambda v: 0.75 if v < 0 else -0.75),
    (ours.heaviside(), lambda v: 1 if v > 0 else 0),
    (ours.spike_rate_escape(), lambda v: 25 * mpmath.exp(-abs(v - 1))),
    (ours.spike_rate_escape(0.5, -3), lambda v: -3 * mpmath.exp(-abs(v - 1) / 2)),
    (ours.LSO(0.125), lambda v: 1 if v > 0 else 0.125),
    (ours.SFS(), lambda v: 1 / (25 * abs(v) + 1) ** 2 if v > 1 else 0),
    (ours.SFS(3, -0.5), lambda v: 1 / (3 * abs(v) + 1) ** 2 if v > -0.5 else 0),
]

SMOOTH = [ours.atan(), ours.fast_sigmoid(), ours.sigmoid(), ours.spike_rate_escape()]

every_pair = pytest.mark.parametrize(("our", "their"), PAIRS.values(), ids=PAIRS.keys())
every_exact = pytest.mark.parametrize(("our", "exact"), EXACT, ids=[str(our) for our, _ in EXACT])
every_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)


def spikes_and_gradient(surrogate: Callable[[Tensor], Tensor], v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    v = v.clone().requires_grad_()
    torch.manual_seed(0)  # SSO draws in the backward pass
    spikes = surrogate(v)
    (gradient,) = torch.autograd.grad(spikes, v, grad.to(spikes.dtype))
    return spikes, gradient


def some_v(dtype: torch.dtype = torch.float32) -> Tensor:
    """Values around the kinks of every surrogate, the kinks themselves (0, 1, -0.0), and random ones."""
    grid = torch.linspace(-3, 3, 121)
    random = torch.randn(200, generator=torch.Generator().manual_seed(1))
    return torch.cat([grid, random, torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5])]).to(dtype)


class TestAgainstSnntorch:
    @every_pair
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_spikes_and_gradient(
        self, our: ours.SurrogateGradient, their: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        v = some_v(dtype)
        grad = torch.randn(v.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        our_spikes, our_gradient = spikes_and_gradient(our, v, grad)
        their_spikes, their_gradient = spikes_and_gradient(their, v, grad)
        assert torch.equal(our_spikes, their_spikes.to(dtype))  # theirs are float32 always
        # The same formulas in another order of operations. Theirs multiply float32 gradients, even for a float64 v, and
        # their sigmoid is 0 where its square overflows.
        assert_close(our_gradient, their_gradient, rtol=16 * torch.finfo(torch.float32).eps, atol=1e-16)

    def test_every_function_has_an_equal_with_the_same_defaults(self) -> None:
        public = {
            name: function
            for name, function in vars(theirs).items()
            if inspect.isfunction(function) and function.__module__ == theirs.__name__
        }
        assert len(public) == 11
        for name, function in public.items():
            signature = inspect.signature(getattr(ours, name))
            assert list(signature.parameters) == list(inspect.signature(function).parameters), name
            defaults = [parameter.default for parameter in signature.parameters.values()]
            assert defaults == [parameter.default for parameter in inspect.signature(function).parameters.values()]

    def test_defect_sigmoid_is_nan_below_the_threshold(self) -> None:
        v = torch.tensor([-4.0, -3.4, 4.0])
        _, their_gradient = spikes_and_gradient(theirs.sigmoid(), v, torch.ones(3))
        _, our_gradient = spikes_and_gradient(ours.sigmoid(), v, torch.ones(3))
        assert their_gradient.isnan().tolist() == [True, False, False]
        assert our_gradient.isfinite().all()
        assert our_gradient[0] == our_gradient[2]
        assert_close(our_gradient[1].item(), 25 * np.exp(-85.0), rtol=1e-4, atol=0)

    def test_defect_LSO_raises(self) -> None:
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            theirs.LSO()(torch.zeros(1))

    def test_LSO_is_what_LeakySpikeOperator_computes(self) -> None:
        # Its backward is called by hand: through autograd it fails too, for it returns one gradient for two inputs.
        v, grad = some_v(), torch.randn(some_v().shape, generator=torch.Generator().manual_seed(2))
        spikes, gradient = spikes_and_gradient(ours.LSO(slope=0.3), v, grad)
        context = SimpleNamespace(saved_tensors=((v > 0).float(),), slope=0.3)
        assert torch.equal(spikes, (v > 0).float())
        assert torch.equal(gradient, theirs.LeakySpikeOperator.backward(context, grad))


class TestStability:
    """Against exact arithmetic. An exponent up to 745 is rounded before exp: hence a tolerance of some hundred eps."""

    @every_exact
    @given(v=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=16))
    @settings(max_examples=25, deadline=None)
    def test_float64(self, our: ours.SurrogateGradient, exact: Callable[[Any], Any], v: list[float]) -> None:
        derivative = our.derivative(torch.tensor(v, dtype=torch.float64)).tolist()
        assert derivative == pytest.approx([float(exact(mpmath.mpf(value))) for value in v], rel=1e-12, abs=1e-300)

    @every_exact
    @given(v=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=16))
    @settings(max_examples=25, deadline=None)
    def test_float32(self, our: ours.SurrogateGradient, exact: Callable[[Any], Any], v: list[float]) -> None:
        derivative = our.derivative(torch.tensor(v)).tolist()
        assert derivative == pytest.approx([float(exact(mpmath.mpf(value))) for value in v], rel=5e-5, abs=1e-36)

    @every_dtype
    @every_exact
    def test_extremes_are_finite(
        self, our: ours.SurrogateGradient, exact: Callable[[Any], Any], dtype: torch.dtype
    ) -> None:
        largest = torch.finfo(dtype).max
        v = torch.tensor([0.0, 1e4, -1e4, min(1e30, largest), -min(1e30, largest), largest, -largest], dtype=dtype)
        spikes = our(v.requires_grad_())
        assert spikes.tolist() == [0, 1, 0, 1, 0, 1, 0]
        if spikes.requires_grad:
            (gradient,) = torch.autograd.grad(spikes.sum(), v)
            assert gradient.isfinite().all()
            expected = [float(exact(mpmath.mpf(value))) for value in v.tolist()]
            assert_close(gradient.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-2, atol=1e-7)

    @pytest.mark.parametrize("our", SMOOTH, ids=str)
    def test_nan_stays_nan_in_the_gradient(self, our: ours.SurrogateGradient) -> None:
        spikes, gradient = spikes_and_gradient(our, torch.tensor([torch.nan]), torch.ones(1))
        assert spikes.item() == 0
        assert gradient.isnan().all()


class TestDtypes:
    @every_dtype
    @every_pair
    def test_spikes_and_gradient_keep_the_dtype(
        self, our: ours.SurrogateGradient, their: object, dtype: torch.dtype
    ) -> None:
        v = some_v(dtype)
        spikes, gradient = spikes_and_gradient(our, v, torch.ones_like(v))
        assert spikes.dtype == gradient.dtype == dtype
        assert torch.equal(spikes, (v > 0).to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("our", [our for our, _ in EXACT if our.kind != 0], ids=str)
    def test_16_bit_gradient_is_rounded_once(self, our: ours.SurrogateGradient, dtype: torch.dtype) -> None:
        v = some_v(dtype)
        grad = torch.randn(v.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        _, gradient = spikes_and_gradient(our, v, grad)
        _, wide = spikes_and_gradient(our, v.float(), grad.float())
        assert torch.equal(gradient, wide.to(dtype))

    @every_pair
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_autocast_changes_nothing(self, our: ours.SurrogateGradient, their: object, dtype: torch.dtype) -> None:
        v = some_v(dtype)
        expected = spikes_and_gradient(our, v, torch.ones_like(v))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = spikes_and_gradient(our, v, torch.ones_like(v))
        assert [tensor.dtype for tensor in result] == [dtype, dtype]
        assert_close(result, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("v", [torch.ones(2, dtype=torch.int64), 1.0, None], ids=["int64", "float", "None"])
    @pytest.mark.parametrize("our", [ours.atan(), ours.disabled()], ids=str)
    def test_what_is_no_floating_tensor_is_refused(self, our: ours.SurrogateGradient, v: Any) -> None:
        with pytest.raises(TypeError, match="v must be a floating-point tensor"):
            our(v)


class TestAutograd:
    def test_disabled_passes_no_gradient(self) -> None:
        v = torch.randn(5, requires_grad=True)
        spikes = ours.disabled()(v)
        assert not spikes.requires_grad
        assert torch.equal(spikes, (v > 0).float())

    @pytest.mark.parametrize(
        "our", [ours.atan(), ours.fast_sigmoid(2), ours.sigmoid(3), ours.spike_rate_escape(), ours.SFS(2, -1)], ids=str
    )
    def test_the_gradient_is_differentiable(self, our: ours.SurrogateGradient) -> None:
        v = torch.tensor([-2.0, -0.4, 0.3, 0.7, 1.8], dtype=torch.float64, requires_grad=True)  # away from the kinks
        grad = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(our, (v,), (grad,))

    @every_exact
    def test_func_grad(self, our: ours.SurrogateGradient, exact: object) -> None:
        v = some_v()
        assert torch.equal(torch.func.grad(lambda v: our(v).sum())(v), our.derivative(v))

    @every_pair
    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does it to trace one
    def test_compile_without_graph_breaks(self, our: ours.SurrogateGradient, their: object) -> None:
        torch._dynamo.reset()
        v = some_v()
        compiled = torch.compile(our, fullgraph=True, backend="aot_eager")
        result = spikes_and_gradient(compiled, v, torch.ones_like(v))
        assert_close(result, spikes_and_gradient(our, v, torch.ones_like(v)), rtol=0, atol=0)

    def test_custom_function_gets_what_snntorch_gives_it(self) -> None:
        v, grad = torch.tensor([-1.0, 2.0], dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)
        seen: list[Tensor] = []

        def own(input_: Tensor, grad_input: Tensor, spikes: Tensor) -> Tensor:
            seen.extend([input_.clone(), grad_input.clone(), spikes.clone()])
            return grad_input.mul_(2)

        _, gradient = spikes_and_gradient(ours.custom_surrogate(own), v, grad)
        assert_close(seen, [v, grad, torch.tensor([0.0, 1.0], dtype=torch.float64)], rtol=0, atol=0)
        assert gradient.tolist() == [6, 8]
        assert grad.tolist() == [3, 4]  # the function wrote to a tensor of its own

    @pytest.mark.parametrize(
        ("result", "error", "message"),
        [(None, TypeError, "must return a tensor, got NoneType"), (torch.ones(3), ValueError, r"shape \[3\] for v of")],
    )
    def test_custom_function_must_return_a_gradient(self, result: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            spikes_and_gradient(ours.custom_surrogate(lambda *_: result), torch.ones(2), torch.ones(2))

    def test_a_subclass_needs_only_a_derivative(self) -> None:
        class Gaussian(ours.SurrogateGradient):
            def derivative(self, v: Tensor) -> Tensor:
                return (-v * v).exp()

        v = some_v()
        _, gradient = spikes_and_gradient(Gaussian(), v, torch.full_like(v, 2))
        assert_close(gradient, 2 * (-v * v).exp())
        assert (Gaussian().kind, Gaussian().parameters) == (None, (0.0, 0.0))
        with pytest.raises(NotImplementedError, match="SurrogateGradient does not define derivative"):
            spikes_and_gradient(ours.SurrogateGradient(), v, v)


class TestValues:
    def test_kinds_and_parameters(self) -> None:
        assert [(our.kind, our.parameters) for our in (
            ours.disabled(), ours.atan(3), ours.fast_sigmoid(4), ours.sigmoid(5), ours.straight_through_estimator(),
            ours.triangular(6), ours.heaviside(), ours.spike_rate_escape(7, 8), ours.LSO(9), ours.SFS(10, 11),
            ours.SSO(12, 13), ours.custom_surrogate(scaled),
        )] == [
            (0, (0, 0)), (1, (3, 0)), (2, (4, 0)), (3, (5, 0)), (4, (0, 0)),
            (5, (6, 0)), (6, (0, 0)), (7, (7, 8)), (8, (9, 0)), (9, (10, 11)),
            (None, (0, 0)), (None, (0, 0)),
        ]  # fmt: skip

    @every_pair
    def test_pickle_and_copy(self, our: ours.SurrogateGradient, their: object) -> None:
        for twin in (pickle.loads(pickle.dumps(our)), copy.deepcopy(our), copy.copy(our)):
            assert twin == our
            assert hash(twin) == hash(our)
            assert (twin.kind, twin.parameters) == (our.kind, our.parameters)

    def test_equality_is_by_kind_and_value(self) -> None:
        distinct = [our for our, _ in PAIRS.values()]
        assert len(set(distinct)) == len(distinct)
        assert ours.fast_sigmoid(25) == ours.fast_sigmoid(25.0) == ours.fast_sigmoid(np.float32(25))

    def test_repr_is_the_call(self) -> None:
        assert repr(ours.spike_rate_escape(beta=2)) == "spike_rate_escape(beta=2.0, slope=25.0)"
        for our, _ in EXACT:
            assert eval(repr(our), vars(ours)) == our

    def test_immutable(self) -> None:
        with pytest.raises(AttributeError):
            ours.atan().alpha = 3.0  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: ours.atan("2"), TypeError, "atan: alpha must be a real number, got str"),
            (lambda: ours.atan(None), TypeError, "atan: alpha must be a real number, got NoneType"),
            (lambda: ours.atan(torch.tensor(2.0)), TypeError, "atan: alpha must be a real number, got Tensor"),
            (lambda: ours.sigmoid(True), TypeError, "sigmoid: slope must be a real number, got bool"),
            (lambda: ours.LSO(float("nan")), ValueError, "LSO: slope must be finite in float32, got nan"),
            (lambda: ours.triangular(float("inf")), ValueError, "triangular: threshold must be finite"),
            (lambda: ours.SSO(variance=float("nan")), ValueError, "SSO: variance must be finite"),
            (lambda: ours.atan(1e39), ValueError, "atan: alpha must be finite in float32"),
            (lambda: ours.fast_sigmoid(-1), ValueError, "fast_sigmoid: slope must not be negative, got -1"),
            (lambda: ours.SFS(slope=-2), ValueError, "SFS: slope must not be negative"),
            (lambda: ours.spike_rate_escape(beta=-1), ValueError, "spike_rate_escape: beta must not be negative"),
            (lambda: ours.custom_surrogate(3), TypeError, "custom_surrogate_function must be callable, got int"),
        ],
    )  # fmt: skip
    def test_bad_arguments(self, make: Callable[[], object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            make()


class TestResolve:
    def test_none_is_atan(self) -> None:
        assert ours.resolve(None) == ours.atan(alpha=2.0)

    @every_pair
    def test_ours_is_itself(self, our: ours.SurrogateGradient, their: object) -> None:
        assert ours.resolve(our) is our

    @every_pair
    def test_a_snntorch_closure_is_its_equal_here(
        self, our: ours.SurrogateGradient, their: Callable[[Tensor], Tensor]
    ) -> None:
        assert ours.resolve(their) == our

    def test_the_default_of_snntorchs_layer_is_atan(self) -> None:
        assert ours.resolve(snntorch.LeakyParallel(2, 2).spike_grad) == ours.atan()
        assert ours.resolve(theirs.Heaviside.apply) == ours.heaviside()

    @every_pair
    def test_an_object_of_a_class_is_its_equal_too(
        self, our: ours.SurrogateGradient, their: Callable[[Tensor], Tensor]
    ) -> None:
        """Later versions of snntorch have classes, the first of them named ATanSurrogate."""
        name = their.__qualname__.split(".")[0]
        if name == "custom_surrogate":
            return
        values = dict(inspect.getclosurevars(their).nonlocals)
        title = {"atan": "ATan", "SSO": "StochasticSpikeOperator"}.get(name, name.title().replace("_", ""))
        for suffix, base in (("Surrogate", object), ("", nn.Module)):
            made = type(
                title + suffix, (base,), {"__module__": "snntorch.surrogate", "__call__": lambda _, v: their(v)}
            )()
            for key, value in values.items():
                setattr(made, key, value)
            assert ours.resolve(made) == our
            made.another = 1.0  # a parameter that is not known
            assert ours.resolve(made) is made

    def test_an_object_that_computes_something_else_is_no_equal(self) -> None:
        class ATanSurrogate:
            alpha: float

            def __call__(self, v: Tensor) -> Tensor:
                return theirs.ATan.apply(v, 2 * self.alpha)

        ATanSurrogate.__module__ = "snntorch.surrogate"
        made = ATanSurrogate()
        made.alpha = 2.0
        assert ours.resolve(made) is made
        made.alpha = "2"  # type: ignore[assignment]
        assert ours.resolve(made) is made

    @pytest.mark.parametrize(
        "callable_",
        [
            theirs.LSO(),  # raises in snntorch, and goes on to do so
            theirs.atan(torch.tensor(2.0)),  # a parameter that may be learned
            theirs.fast_sigmoid(-1),  # a pole
            theirs.FastSigmoid.apply,  # which has no slope of its own
            torch.sigmoid,
            lambda v: v,
            torch.nn.ReLU(),
        ],
        ids=["LSO", "tensor", "pole", "FastSigmoid.apply", "builtin", "lambda", "module"],
    )
    def test_any_other_callable_is_unchanged(self, callable_: Callable[[Tensor], Tensor]) -> None:
        assert ours.resolve(callable_) is callable_

    @pytest.mark.parametrize("value", ["atan", 1, torch.ones(1)], ids=["str", "int", "tensor"])
    def test_what_is_not_callable_is_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match=f"spike_grad must be None or a callable, got {type(value).__name__}"):
            ours.resolve(value)

    def test_a_class_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"got the class fast_sigmoid: call it, as in fast_sigmoid\(\)"):
            ours.resolve(ours.fast_sigmoid)


SOURCE = """
#include "math/surrogate.h"

template <typename Real>
void derivatives(const leakypar::Surrogate& surrogate, const Real* v, Real* result, long long count) {
  for (long long i = 0; i < count; ++i) result[i] = leakypar::surrogate_derivative(surrogate, v[i]);
}

extern "C" void derivatives_float32(int kind, double p0, double p1, const float* v, float* result, long long count) {
  derivatives({static_cast<leakypar::SurrogateKind>(kind), p0, p1}, v, result, count);
}
extern "C" void derivatives_float64(int kind, double p0, double p1, const double* v, double* result, long long count) {
  derivatives({static_cast<leakypar::SurrogateKind>(kind), p0, p1}, v, result, count);
}
extern "C" int spike_float32(float v) { return leakypar::spike(v); }
extern "C" int spike_float64(double v) { return leakypar::spike(v); }
"""

FLOATS = {torch.float32: "float32", torch.float64: "float64"}


@pytest.fixture(scope="session")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/math/surrogate.h, compiled for the host."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("surrogate")
    source, library = folder / "surrogate.cpp", folder / "surrogate.so"
    source.write_text(SOURCE)
    flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*compiler.split(), *flags, str(source), "-o", str(library)], check=True)
    result = ctypes.CDLL(str(library))
    result.spike_float32.argtypes = [ctypes.c_float]
    result.spike_float64.argtypes = [ctypes.c_double]
    arguments = [ctypes.c_int, ctypes.c_double, ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong]
    for name in FLOATS.values():
        getattr(result, f"derivatives_{name}").argtypes = arguments
    return result


class TestHeader:
    @staticmethod
    def derivatives(header: ctypes.CDLL, our: ours.SurrogateGradient, v: Tensor) -> Tensor:
        result = torch.empty_like(v)
        function = getattr(header, f"derivatives_{FLOATS[v.dtype]}")
        function(our.kind, *our.parameters, v.data_ptr(), result.data_ptr(), v.numel())
        return result

    @every_exact
    @pytest.mark.parametrize("dtype", list(FLOATS), ids=str)
    @given(data=st.data())
    @settings(max_examples=25, deadline=None)
    def test_agrees_with_python(
        self,
        header: ctypes.CDLL,
        our: ours.SurrogateGradient,
        exact: object,
        dtype: torch.dtype,
        data: st.DataObject,
    ) -> None:
        width: Any = torch.finfo(dtype).bits
        anything = st.floats(allow_nan=False, allow_infinity=False, width=width)
        near = st.floats(-4, 4, width=width)
        drawn = data.draw(st.lists(anything | near, min_size=1, max_size=32))
        v = torch.cat([torch.tensor(drawn, dtype=dtype), some_v(dtype)])
        result = self.derivatives(header, our, v)
        assert result.isfinite().all()
        # The same operations, but two libraries' exp and another order of the constants. Below the smallest normal
        # number a vectorised exp may give zero, and a slope of 25 scales that.
        finfo = torch.finfo(dtype)
        assert_close(result, our.derivative(v), rtol=16 * finfo.eps, atol=64 * finfo.tiny)

    @pytest.mark.parametrize("dtype", list(FLOATS), ids=str)
    def test_spike_is_strict(self, header: ctypes.CDLL, dtype: torch.dtype) -> None:
        spike = getattr(header, f"spike_{FLOATS[dtype]}")
        smallest = torch.finfo(dtype).smallest_normal
        values = [0.0, -0.0, smallest, -smallest, 1.0, -1.0, float("inf"), float("-inf"), float("nan")]
        assert [spike(value) for value in values] == [0, 0, 1, 0, 1, 0, 1, 0, 0]

    @pytest.mark.parametrize("dtype", list(FLOATS), ids=str)
    def test_nan_stays_nan(self, header: ctypes.CDLL, dtype: torch.dtype) -> None:
        for our in SMOOTH:
            assert self.derivatives(header, our, torch.tensor([torch.nan], dtype=dtype)).isnan().all(), our
