"""The specification: against snntorch itself, against the formulas of the backward scan, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from leakypar import surrogate
from leakypar.reference import leaky_parallel

snntorch = pytest.importorskip("snntorch")
theirs = snntorch.surrogate


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers: gradients that snntorch's float32 spikes pass on exactly, whatever the layer's dtype."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


# Arguments of the layer's constructor, and the shape of x.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "default": ({}, (20, 3, 5)),
    "unbatched": ({"learn_beta": True}, (20, 5)),
    "one of each": ({"learn_beta": True}, (1, 1, 5)),
    "beta": ({"beta": 0.9, "learn_beta": True}, (20, 3, 5)),
    "beta clamped": ({"beta": 1.5, "learn_beta": True}, (20, 3, 5)),
    "beta frozen": ({"beta": 0.9}, (20, 3, 5)),
    "no bias": ({"bias": False, "learn_beta": True}, (20, 3, 5)),
    "threshold": ({"threshold": 0.25, "learn_threshold": True}, (20, 3, 5)),
    "threshold per neuron": ({"threshold": torch.linspace(-0.2, 1, 7), "learn_threshold": True}, (20, 3, 5)),
    "gain": ({"graded_spikes_factor": 1.5, "learn_graded_spikes_factor": True}, (20, 3, 5)),
    "gain per neuron": (
        {"graded_spikes_factor": torch.arange(-3.0, 4.0), "learn_graded_spikes_factor": True},
        (20, 3, 5),
    ),
    "dense": ({"weight_hh_enable": True, "learn_beta": True}, (20, 3, 5)),
    "dense unbatched": ({"weight_hh_enable": True, "learn_beta": True}, (20, 5)),
    "dense beta": ({"weight_hh_enable": True, "beta": 0.1, "learn_beta": True}, (20, 3, 5)),
    "everything": (
        {
            "learn_beta": True,
            "threshold": torch.linspace(0.1, 0.5, 7),
            "learn_threshold": True,
            "graded_spikes_factor": 0.5,
            "learn_graded_spikes_factor": True,
        },
        (20, 3, 5),
    ),
}
SPIKE_GRADS: dict[str, Callable[[Tensor], Tensor]] = {
    "atan": theirs.atan(alpha=5),
    "fast_sigmoid": theirs.fast_sigmoid(),
    "sigmoid": theirs.sigmoid(slope=4),
    "straight_through_estimator": theirs.straight_through_estimator(),
    "triangular": theirs.triangular(),
    "heaviside": theirs.heaviside(),
    "spike_rate_escape": theirs.spike_rate_escape(),
    "SFS": theirs.SFS(B=-0.5),
    "custom_surrogate": theirs.custom_surrogate(lambda v, grad, spikes: grad / (1 + v * v) + spikes),
    "a user's own": lambda v: theirs.ATan.apply(2 * v, 3.0),
}


class TestAgainstSnntorch:
    """Spikes equal, and every gradient, of ``snntorch.LeakyParallel`` 1.0.0 as its users construct it."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize(("arguments", "shape"), CASES.values(), ids=CASES.keys())
    def test_arguments(self, arguments: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        torch.manual_seed(3)
        layer = snntorch.LeakyParallel(5, 7, **arguments).to(dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        self.check(layer, random(*shape, seed=4, dtype=dtype), tolerance)

    @pytest.mark.parametrize("spike_grad", SPIKE_GRADS.values(), ids=SPIKE_GRADS.keys())
    def test_spike_grad(self, spike_grad: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(3)
        layer = snntorch.LeakyParallel(
            5, 7, threshold=0.5, spike_grad=spike_grad, learn_beta=True, learn_threshold=True
        ).double()
        # Some of snntorch's derivatives multiply in float32, the dtype of its spikes, in a float64 layer too.
        self.check(layer, random(20, 3, 5, seed=4, dtype=torch.float64), 1e-5, spike_grad)

    @pytest.mark.parametrize("decay", [-1.1, -0.5, -0.0, 0.0, 0.3, 1.0, 1.1])
    def test_any_decay(self, decay: float) -> None:
        torch.manual_seed(3)
        layer = snntorch.LeakyParallel(5, 7, learn_beta=True).double()
        with torch.no_grad():
            layer.rnn.weight_hh_l0.copy_(torch.diag(torch.full((7,), decay)))
        self.check(layer, random(50, 3, 5, seed=4, dtype=torch.float64), 1e-10)

    def test_surrogate_disable(self) -> None:
        torch.manual_seed(3)
        layer = snntorch.LeakyParallel(
            5, 7, surrogate_disable=True, learn_graded_spikes_factor=True, learn_threshold=True
        )
        x = random(20, 3, 5, seed=4)
        spikes = self.reference(layer, x, surrogate_disable=True)
        assert torch.equal(spikes, layer(x))
        spikes.sum().backward()
        (gain_gradient,) = torch.autograd.grad(layer(x).sum(), layer.graded_spikes_factor)
        assert_close(layer.graded_spikes_factor.grad, gain_gradient)
        assert all(parameter.grad is None for parameter in layer.rnn.parameters())
        assert layer.threshold.grad is None

    def check(
        self,
        layer: snntorch.LeakyParallel,
        x: Tensor,
        tolerance: float,
        spike_grad: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        grad = whole(*x.shape[:-1], 7, seed=5)
        their_spikes, their_gradients = self.run(layer, x, grad, layer)
        our_spikes, our_gradients = self.run(layer, x, grad, lambda x: self.reference(layer, x, spike_grad=spike_grad))
        assert 0 < int(their_spikes.count_nonzero()) < their_spikes.numel()  # the case decides something
        assert our_spikes.dtype == x.dtype
        assert torch.equal(our_spikes, their_spikes.to(x.dtype))
        assert our_gradients.keys() == their_gradients.keys()
        for name, gradient in our_gradients.items():
            assert_close(
                gradient, their_gradients[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )

    @staticmethod
    def run(
        layer: snntorch.LeakyParallel, x: Tensor, grad: Tensor, forward: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = x.clone().requires_grad_()
        layer.zero_grad()
        spikes = forward(x)
        spikes.backward(grad.to(spikes.dtype))
        learned = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
        assert all(parameter.grad is not None for parameter in learned.values())
        return spikes.detach(), {"x": x.grad, **{name: parameter.grad for name, parameter in learned.items()}}

    @staticmethod
    def reference(layer: snntorch.LeakyParallel, x: Tensor, **arguments: Any) -> Tensor:
        weight_hh = layer.rnn.weight_hh_l0
        diagonal = weight_hh.detach().diagonal()
        dense = not torch.equal(weight_hh, torch.diag(diagonal))
        spikes = leaky_parallel(
            x,
            layer.rnn.weight_ih_l0,
            weight_hh if dense else weight_hh.diagonal(),
            layer.rnn.bias_ih_l0 if layer.rnn.bias else None,
            layer.rnn.bias_hh_l0 if layer.rnn.bias else None,
            layer.threshold,
            layer.graded_spikes_factor,
            **arguments,
        )
        assert isinstance(spikes, Tensor)
        return spikes


class TestWhereWeDifferFromSnntorch:
    """Each test pins what snntorch 1.0.0 does too: if it changes, the decision is to be looked at again."""

    def test_spikes_have_the_compute_dtype(self) -> None:
        layer = snntorch.LeakyParallel(5, 7).double()
        x = random(4, 3, 5, dtype=torch.float64)
        assert layer(x).dtype == torch.float32
        assert TestAgainstSnntorch.reference(layer, x).dtype == torch.float64

    @pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")  # nn.RNN, for its single layer
    def test_dropout_is_on_the_membrane(self) -> None:
        torch.manual_seed(3)
        layer = snntorch.LeakyParallel(5, 7, threshold=0.3, dropout=0.9)
        x = random(20, 3, 5, seed=4)
        assert torch.equal(layer.train()(x), layer.eval()(x))
        mask = (random(20, 3, 7, seed=5) > 0) * 2.0
        spikes = TestAgainstSnntorch.reference(layer, x, dropout_mask=mask)
        membrane, _ = layer.rnn(x)
        assert torch.equal(spikes, (membrane * mask > 0.3).float())
        assert not torch.equal(spikes, layer(x))

    def test_no_time_steps(self) -> None:
        layer = snntorch.LeakyParallel(5, 7)
        x = torch.empty(0, 3, 5)
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
            layer(x)
        assert TestAgainstSnntorch.reference(layer, x).shape == (0, 3, 7)

    def test_threshold_is_a_number_or_one_per_neuron(self) -> None:
        layer = snntorch.LeakyParallel(5, 7, threshold=torch.ones(3, 1))
        x = random(4, 3, 5)
        assert layer(x).shape == (4, 3, 7)
        with pytest.raises(ValueError, match=r"threshold must be one value or .* = \[7\], got \[3, 1\]"):
            TestAgainstSnntorch.reference(layer, x)


def make(T: int, N: int, C: int, H: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A problem with every argument that has a gradient, decays of every sign and magnitude included."""
    return {
        "x": random(T, N, C, seed=0, dtype=dtype),
        "weight": random(H, C, seed=1, dtype=dtype) / 2,
        "decay": torch.linspace(-1.1, 1.1, H, dtype=dtype),
        "bias_ih": random(H, seed=2, dtype=dtype) / 4,
        "bias_hh": random(H, seed=3, dtype=dtype) / 4,
        "threshold": torch.linspace(0.2, 0.8, H, dtype=dtype),
        "gain": torch.linspace(0.5, 2, H, dtype=dtype),
        "initial_membrane": random(N, H, seed=4, dtype=dtype).abs(),
    }


class TestGradient:
    def test_by_hand(self) -> None:
        """One neuron, four steps, the third clipped by the relu. The numbers are the formulas', written out."""
        weight, decay, threshold, gain = 2.0, 0.5, 1.0, 4.0
        arguments = {
            "x": torch.tensor([[0.75], [0.25], [-1.5], [0.625]]),  # u = 1.5, 0.5, -3, 1.25
            "weight": torch.tensor([[weight]]),
            "decay": torch.tensor([decay]),
            "bias_ih": torch.zeros(1),
            "bias_hh": torch.zeros(1),
            "threshold": torch.tensor(threshold),
            "gain": torch.tensor(gain),
            "initial_membrane": torch.tensor([1.0]),
        }
        arguments = {name: value.double().requires_grad_() for name, value in arguments.items()}
        spikes, membrane, final = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        assert membrane.flatten().tolist() == [2.0, 1.5, 0.0, 1.25]
        assert final.tolist() == [1.25]
        assert spikes.flatten().tolist() == [4.0, 4.0, 0.0, 4.0]

        spikes.backward(torch.tensor([[1.0], [2.0], [3.0], [5.0]], dtype=torch.float64))
        g1, g2, g3, g4 = (dS * gain / (1 + (math.pi * v) ** 2) for dS, v in [(1, 1.0), (2, 0.5), (3, -1.0), (5, 0.25)])
        du1, du2, du3, du4 = g1 + decay * g2, g2, 0.0, g4
        expected = {
            "x": [weight * du1, weight * du2, weight * du3, weight * du4],
            "weight": [0.75 * du1 + 0.25 * du2 + 0.625 * du4],
            "decay": [1.0 * du1 + 2.0 * du2 + 1.5 * du3 + 0.0 * du4],
            "bias_ih": [du1 + du2 + du4],
            "bias_hh": [du1 + du2 + du4],
            "threshold": [-(g1 + g2 + g3 + g4)],
            "gain": [1.0 + 2.0 + 5.0],
            "initial_membrane": [decay * du1],
        }
        for name, argument in arguments.items():
            assert argument.grad is not None
            assert argument.grad.flatten().tolist() == pytest.approx(expected[name], rel=1e-14), name

    @pytest.mark.parametrize("spike_grad", [None, surrogate.fast_sigmoid(5), surrogate.triangular()], ids=str)
    @pytest.mark.parametrize("shape", [(1, 1, 1, 1), (9, 2, 3, 5), (40, 3, 4, 6)], ids=str)
    def test_is_the_backward_scan(
        self, shape: tuple[int, int, int, int], spike_grad: surrogate.SurrogateGradient | None
    ) -> None:
        """The linear scan in reverse that the kernels run, here with gradients of all three results and dropout."""
        T, N, _, H = shape
        arguments = {name: value.requires_grad_() for name, value in make(*shape).items()}
        mask = (random(T, N, H, seed=5, dtype=torch.float64) > -0.5) / 0.7
        spikes, h, final = leaky_parallel(
            **arguments, spike_grad=spike_grad, dropout_mask=mask, return_membrane=True, return_state=True
        )
        grad_spikes, grad_h, grad_final = random(T, N, H, seed=6), random(T, N, H, seed=7), random(N, H, seed=8)
        grads = [grad.double() for grad in (grad_spikes, grad_h, grad_final)]
        gradients = torch.autograd.grad([spikes, h, final], list(arguments.values()), grads)

        with torch.no_grad():
            x, weight, w, _, _, threshold, gain, h_0 = arguments.values()
            v = h * mask - threshold
            g = grads[0] * gain * (spike_grad or surrogate.atan()).derivative(v)
            d_u, r = torch.zeros_like(h), grads[2]
            for t in reversed(range(T)):
                d_u[t] = (h[t] > 0) * (g[t] * mask[t] + grads[1][t] + r)
                r = w * d_u[t]
            previous = torch.cat([h_0[None], h[:-1]])
            expected = (
                d_u @ weight,
                torch.einsum("tnh,tnc->hc", d_u, x),
                (d_u * previous).sum((0, 1)),
                d_u.sum((0, 1)),
                d_u.sum((0, 1)),
                -g.sum((0, 1)),
                (grads[0] * (v > 0)).sum((0, 1)),
                r,
            )
        for name, gradient, value in zip(arguments, gradients, expected, strict=True):
            assert_close(gradient, value, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")

    @pytest.mark.parametrize("dense", [False, True])
    def test_gradcheck_of_the_membrane(self, dense: bool) -> None:
        arguments = make(7, 2, 3, 4)
        del arguments["threshold"], arguments["gain"]
        if dense:
            arguments["decay"] = random(4, 4, seed=9, dtype=torch.float64) / 2
        inputs = [value.requires_grad_() for value in arguments.values()]

        def membrane(x: Tensor, weight: Tensor, decay: Tensor, b_ih: Tensor, b_hh: Tensor, h_0: Tensor) -> Any:
            options: dict[str, Any] = {"initial_membrane": h_0, "return_membrane": True, "return_state": True}
            return leaky_parallel(x, weight, decay, b_ih, b_hh, **options)[1:]

        positive = [h[h > 0].min().item() for h in membrane(*inputs)]
        assert min(positive) > 1e-3  # gradcheck steps by 1e-6: nothing crosses the kink of the relu
        assert torch.autograd.gradcheck(membrane, inputs)

    def test_relu_has_no_gradient_at_zero(self) -> None:
        x = torch.zeros(1, 1, requires_grad=True)
        _, membrane = leaky_parallel(x, torch.ones(1, 1), torch.ones(1), return_membrane=True)
        (gradient,) = torch.autograd.grad(membrane.sum(), x)
        assert gradient.item() == 0


class TestSpike:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_is_strict(self, dtype: torch.dtype) -> None:
        one = torch.tensor(1.0, dtype=dtype)
        x = torch.stack([one, torch.nextafter(one, 2 * one), torch.nextafter(one, 0 * one)])[:, None]
        weight, decay = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
        assert leaky_parallel(x, weight, decay, threshold=1.0).flatten().tolist() == [0, 1, 0]

    def test_negative_threshold_spikes_at_rest(self) -> None:
        spikes = leaky_parallel(torch.zeros(2, 1), torch.ones(1, 1), torch.ones(1), threshold=-0.5)
        assert spikes.flatten().tolist() == [1, 1]

    def test_nan_membrane_does_not_spike(self) -> None:
        x = torch.tensor([[2.0], [torch.nan], [2.0]])
        spikes, membrane = leaky_parallel(x, torch.ones(1, 1), torch.full((1,), 0.5), return_membrane=True)
        assert spikes.flatten().tolist() == [1, 0, 0]
        assert membrane.isnan().flatten().tolist() == [False, True, True]

    def test_numbers_stand_for_tensors(self) -> None:
        arguments = make(9, 2, 3, 5)
        expected = leaky_parallel(
            **arguments | {"threshold": torch.full((5,), 0.3).double(), "gain": torch.full((1,), 2.0)}
        )
        assert torch.equal(leaky_parallel(**arguments | {"threshold": 0.3, "gain": 2}), expected)  # type: ignore[arg-type]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_a_callable_gets_the_unrounded_difference(self, dtype: torch.dtype) -> None:
        seen = []

        def own(v: Tensor) -> Tensor:
            seen.append(v)
            return surrogate.sigmoid()(v)

        arguments = make(9, 2, 3, 5, dtype)
        spikes = leaky_parallel(**arguments, spike_grad=own)
        assert torch.equal(spikes, leaky_parallel(**arguments, spike_grad=surrogate.sigmoid()))
        assert spikes.dtype == dtype
        assert [v.dtype for v in seen] == [torch.promote_types(dtype, torch.float32)]


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_16_bit_is_float32_rounded_at_the_ends(self, dtype: torch.dtype) -> None:
        arguments = make(30, 2, 3, 5, dtype)
        wide = {name: value.float() for name, value in arguments.items()}
        spikes, membrane, final = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        wide_spikes, wide_membrane, wide_final = leaky_parallel(**wide, return_membrane=True, return_state=True)
        assert torch.equal(spikes, wide_spikes.to(dtype))
        assert torch.equal(membrane, wide_membrane.to(dtype))
        assert torch.equal(final, wide_final)
        assert final.dtype == torch.float32

    def test_the_unrounded_membrane_decides(self) -> None:
        x = torch.tensor([[1.0], [2.0**-10]], dtype=torch.bfloat16)  # 1 + 2^-10 is 1 in bfloat16
        one = torch.ones(1, 1, dtype=torch.bfloat16)
        spikes, membrane = leaky_parallel(x, one, one[0], threshold=1.0, return_membrane=True)
        assert membrane.flatten().tolist() == [1, 1]
        assert spikes.flatten().tolist() == [0, 1]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast_rounds_what_it_would_for_nn_RNN(self, dtype: torch.dtype) -> None:
        arguments = {name: value.requires_grad_() for name, value in make(30, 2, 3, 5, torch.float32).items()}
        rounded = dict(arguments) | {name: arguments[name].to(dtype) for name in ("x", "weight")}
        expected = leaky_parallel(**rounded, return_membrane=True, return_state=True)
        with torch.autocast("cpu", dtype=dtype):
            result = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        assert [tensor.dtype for tensor in result] == [dtype, dtype, torch.float32]
        assert_close(result, expected, rtol=0, atol=0)
        gradients = torch.autograd.grad(result[0].sum(), list(arguments.values()))
        expected_gradients = torch.autograd.grad(expected[0].sum(), list(arguments.values()))
        assert_close(gradients, expected_gradients, rtol=0, atol=0)

    def test_autocast_leaves_float64(self) -> None:
        arguments = make(5, 2, 3, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = leaky_parallel(**arguments, return_membrane=True)
        assert_close(result, leaky_parallel(**arguments, return_membrane=True), rtol=0, atol=0)


class TestSequences:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_in_pieces(self, dtype: torch.dtype) -> None:
        arguments = make(20, 2, 1, 5, dtype)  # C = 1: a product of any number of rows rounds the same
        spikes, membrane, final = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        state, pieces = arguments["initial_membrane"], []
        for piece in arguments["x"].split([1, 12, 0, 7]):
            piece_arguments = arguments | {"x": piece, "initial_membrane": state}
            *results, state = leaky_parallel(**piece_arguments, return_membrane=True, return_state=True)
            pieces.append(results)
        assert torch.equal(torch.cat([piece[0] for piece in pieces]), spikes)
        assert torch.equal(torch.cat([piece[1] for piece in pieces]), membrane)
        assert torch.equal(state, final)

    @pytest.mark.parametrize("dense", [False, True])
    def test_unbatched_is_a_batch_of_one(self, dense: bool) -> None:
        arguments = make(20, 1, 3, 5)
        if dense:
            arguments["decay"] = random(5, 5, seed=9, dtype=torch.float64) / 2
        batched = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        squeezed = arguments | {"x": arguments["x"][:, 0], "initial_membrane": arguments["initial_membrane"][0]}
        spikes, membrane, final = leaky_parallel(**squeezed, return_membrane=True, return_state=True)
        assert_close((spikes[:, None], membrane[:, None], final[None]), batched)

    def test_neurons_are_independent(self) -> None:
        arguments = make(20, 2, 3, 5)
        spikes = leaky_parallel(**arguments)
        for i in range(5):
            one = {name: value[..., i : i + 1] for name, value in arguments.items()}
            one |= {"x": arguments["x"], "weight": arguments["weight"][i : i + 1]}
            assert torch.equal(leaky_parallel(**one), spikes[..., i : i + 1])

    def test_a_diagonal_matrix_is_its_diagonal(self) -> None:
        arguments = make(20, 2, 3, 5)
        dense = arguments | {"decay": torch.diag(arguments["decay"])}
        result = leaky_parallel(**dense, return_membrane=True)
        assert_close(result, leaky_parallel(**arguments, return_membrane=True))

    @pytest.mark.parametrize("dense", [False, True])
    @pytest.mark.parametrize(("T", "N"), [(0, 2), (3, 0), (0, 0)])
    def test_empty(self, T: int, N: int, dense: bool) -> None:
        arguments = make(T, N, 3, 5)
        if dense:
            arguments["decay"] = random(5, 5, seed=9, dtype=torch.float64)
        arguments = {name: value.requires_grad_() for name, value in arguments.items()}
        spikes, membrane, final = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        assert spikes.shape == membrane.shape == (T, N, 5)
        assert final.shape == (N, 5)
        if T == 0:
            assert torch.equal(final, arguments["initial_membrane"])
        del arguments["initial_membrane"], arguments["decay"]  # which no step used, if there was none
        for name, gradient in zip(arguments, torch.autograd.grad(spikes.sum(), list(arguments.values())), strict=True):
            assert gradient.shape == arguments[name].shape
            assert not gradient.any()

    def test_empty_unbatched(self) -> None:
        spikes, final = leaky_parallel(torch.empty(0, 3), torch.ones(5, 3), torch.ones(5), return_state=True)
        assert spikes.shape == (0, 5)
        assert final.tolist() == [0] * 5

    def test_what_is_returned(self) -> None:
        arguments = make(4, 2, 3, 5)
        spikes, membrane, final = leaky_parallel(**arguments, return_membrane=True, return_state=True)
        alone = leaky_parallel(**arguments)
        assert isinstance(alone, Tensor)
        assert torch.equal(alone, spikes)
        assert_close(leaky_parallel(**arguments, return_membrane=True), (spikes, membrane), rtol=0, atol=0)
        assert_close(leaky_parallel(**arguments, return_state=True), (spikes, final), rtol=0, atol=0)

    def test_membrane_is_before_dropout(self) -> None:
        arguments = make(9, 2, 3, 5)
        nothing = torch.zeros(9, 2, 5)
        spikes, *rest = leaky_parallel(**arguments, dropout_mask=nothing, return_membrane=True, return_state=True)
        assert not spikes.any()
        assert_close(
            rest, list(leaky_parallel(**arguments, return_membrane=True, return_state=True)[1:]), rtol=0, atol=0
        )


class TestBadArguments:
    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"x": [[1.0]]}, TypeError, "x must be a tensor .*, got list"),
            ({"x": torch.ones(4, 2, 3).int()}, TypeError, "x must be a tensor of .*, got torch.int32"),
            ({"x": torch.ones(3)}, ValueError, r"x must have shape \[T, N, C\], or \[T, C\].*, got \[3\]"),
            ({"x": torch.ones(4, 2, 6)}, ValueError, r"x must have 3 input features.*, got 6 in shape \[4, 2, 6\]"),
            ({"weight": torch.ones(5, 3, 1)}, ValueError, r"weight must have shape \[H, C\], got \[5, 3, 1\]"),
            ({"weight": torch.ones(5, 3)}, ValueError, "x must have the dtype of the weights, torch.float32"),
            ({"decay": torch.ones(1)}, ValueError, r"decay must have shape \[H\] or \[H, H\] for H = 5, got \[1\]"),
            ({"decay": 0.9}, TypeError, r"decay must be a tensor \[H\] or \[H, H\], got float"),
            ({"bias_ih": torch.ones(1)}, ValueError, r"bias_ih must have shape \[H\] = \[5\], got \[1\]"),
            ({"bias_hh": 1.0}, TypeError, r"bias_hh must be a tensor \[H\], got float"),
            ({"threshold": torch.ones(2, 1)}, ValueError, r"threshold must be one value or .* \[5\], got \[2, 1\]"),
            ({"gain": "1"}, TypeError, r"gain must be a tensor \[\], \[1\] or \[H\], or a number, got str"),
            ({"initial_membrane": torch.ones(5)}, ValueError, r"initial_membrane .*\[N, H\] = \[2, 5\].*, got \[5\]"),
            ({"dropout_mask": torch.ones(2, 5)}, ValueError, r"dropout_mask .*= \[4, 2, 5\], got \[2, 5\]"),
            ({"dropout_mask": 0.5}, TypeError, r"dropout_mask must be a tensor \[T, N, H\], got float"),
            ({"spike_grad": "atan"}, TypeError, "spike_grad must be None or a callable, got str"),
        ],
    )  # fmt: skip
    def test_is_named(self, changed: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments: dict[str, Any] = make(4, 2, 3, 5)
        with pytest.raises(error, match=message):
            leaky_parallel(**arguments | changed)
