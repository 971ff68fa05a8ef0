"""One suite for every implementation of the layer, against the specification in float64."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

import leakypar
from leakypar import surrogate

from .emulation.control import schedule
from .implementations import Implementation, emulated_library, run_reference
from .problems import BOUNDS, DECAYS, DTYPES, Problem, draw, gradients_at, rounding_margin, within_margin

LENGTHS = [0, 1, 31, 32, 33, 129, 1000]
SURROGATES = [
    surrogate.atan(),
    surrogate.atan(alpha=5.0),
    surrogate.fast_sigmoid(slope=10),
    surrogate.sigmoid(slope=5),
    surrogate.straight_through_estimator(),
    surrogate.triangular(threshold=0.5),
    surrogate.heaviside(),
    surrogate.spike_rate_escape(beta=2, slope=3),
    surrogate.LSO(slope=0.2),
    surrogate.SFS(slope=10, B=0.1),
    surrogate.disabled(),
]

# Of the spikes, the most whose membrane may lie within rounding of the threshold, where either answer is right.
EXCUSED = {torch.float64: 0.0, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


def outputs(implementation: Implementation, problem: Problem, dtype: torch.dtype, **options: object) -> list[Tensor]:
    moved = problem.to(dtype, implementation.device)
    return [output.detach().cpu() for output in implementation.run(**moved.arguments(), **options)]


def check_outputs(implementation: Implementation, problem: Problem, dtype: torch.dtype) -> None:
    spikes, membrane, last = outputs(implementation, problem, dtype)
    _, exact, exact_last = run_reference(**problem.to(torch.float64).arguments())
    T, N, H = exact.shape
    assert spikes.dtype == membrane.dtype == dtype
    assert last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert spikes.shape == membrane.shape == (T, N, H)
    assert last.shape == (N, H)

    margin = rounding_margin(problem, dtype, implementation.rounds_state)
    assert within_margin(membrane, exact, margin)
    if T > 0:
        assert within_margin(last, exact_last, margin[-1])
    else:
        torch.testing.assert_close(last.double(), exact_last, rtol=0, atol=0)

    threshold, gain = problem.threshold.detach().double(), problem.gain.detach().double()
    expected = torch.where(exact - threshold > 0, gain, 0.0).masked_fill(problem.over(), 0)
    excused = (exact - threshold).abs() <= margin
    wrong = (spikes.double() != expected) & margin.isfinite()
    assert not bool((wrong & ~excused).any())
    assert bool(((spikes == 0) | (spikes.double() == gain)).all())
    if wrong.numel() > 0:
        assert wrong.double().mean().item() <= EXCUSED[dtype]


def gradients(
    implementation: Implementation | None,
    problem: Problem,
    dtype: torch.dtype,
    cotangents: tuple[Tensor, ...],
    **options,
) -> dict[str, Tensor]:
    """Every gradient of <spikes, c0> + <membrane, c1> + <last, c2>, by an implementation or by the specification."""
    device = implementation.device if implementation else "cpu"
    moved = problem.to(dtype, device)
    run = implementation.run if implementation else run_reference
    results = run(**moved.arguments(), **options)
    loss = sum((result * c.to(device, result.dtype)).sum() for result, c in zip(results, cotangents, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    return {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.detach().cpu()
        for name, tensor in moved.tensors().items()
    }


def cotangents_for(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, ...]:
    T, N, _ = problem.x.shape
    H = problem.weight.shape[0]
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((T, N, H), (T, N, H), (N, H))]
    # Those of spikes and membrane enter in the compute dtype: they are made exact in it.
    return (drawn[0].to(dtype).double(), drawn[1].to(dtype).double(), drawn[2])


def relative_error(value: Tensor, exact: Tensor) -> float:
    scale = exact.norm().item()
    return (value.double() - exact).norm().item() / scale if scale > 0 else value.double().norm().item()


def check_gradients(
    implementation: Implementation,
    problem: Problem,
    dtype: torch.dtype,
    spike_grad: surrogate.SurrogateGradient | None = None,
) -> None:
    """Against autograd through the specification in float64; in 16 bits, against section by section formulas.

    A 16-bit membrane falls on the other side of a kink here and there, and each time a gradient jumps. So a 16-bit
    gradient is compared with the exact one at the membrane that the implementation itself kept.
    """
    cotangents = cotangents_for(problem, dtype)
    options = {} if spike_grad is None else {"spike_grad": spike_grad}
    ours = gradients(implementation, problem, dtype, cotangents, **options)
    if dtype in (torch.float16, torch.bfloat16):
        membrane = outputs(implementation, problem, dtype, **options)[1]
        exact = gradients_at(membrane, problem, cotangents, spike_grad or surrogate.atan())
        allowed = dict.fromkeys(exact, (16 if implementation.rounds_state else 2) * torch.finfo(dtype).eps)
    else:
        exact = gradients(None, problem, torch.float64, cotangents, **options)
        if dtype == torch.float64:
            allowed = dict.fromkeys(exact, 1e-12)
        else:
            # The specification's own error in float32 is the measure; the floor is for where it happens to be tiny.
            plain = gradients(None, problem, dtype, cotangents, **options)
            allowed = {name: 4 * relative_error(plain[name], exact[name]) + 2e-6 for name in exact}
    for name, expected in exact.items():
        assert ours[name].dtype == dtype
        assert ours[name].shape == expected.shape
        error = relative_error(ours[name], expected)
        assert error <= allowed[name], f"{name}: relative error {error:.2e}, allowed {allowed[name]:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", LENGTHS)
def test_outputs(implementation: Implementation, T: int, dtype: torch.dtype) -> None:
    check_outputs(implementation, draw(T, 3, 5, 37, dtype=dtype, seed=T), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", LENGTHS)
def test_gradients(implementation: Implementation, T: int, dtype: torch.dtype) -> None:
    if implementation.rounds_state and dtype in (torch.float16, torch.bfloat16) and T > 33:
        return  # nn.RNN sums a weight's gradient over the steps in 16 bits; its error there is not this package's
    check_gradients(implementation, draw(T, 2, 5, 24, dtype=dtype, seed=T), dtype)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decays(implementation: Implementation, decay: str, dtype: torch.dtype) -> None:
    problem = draw(70, 2, 3, 17, dtype=dtype, decay=decay)
    check_outputs(implementation, problem, dtype)
    check_gradients(implementation, problem, dtype)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds(fused_implementation: Implementation, bounds: tuple[float, float], dtype: torch.dtype) -> None:
    for decay, T in (("mixed", 70), ("above-one", 20)):
        problem = draw(T, 2, 3, 17, dtype=dtype, decay=decay, bounds=bounds)
        check_outputs(fused_implementation, problem, dtype)
        check_gradients(fused_implementation, problem, dtype)
    without_initial = draw(9, 2, 3, 17, dtype=dtype, initial=False, bounds=bounds)
    check_outputs(fused_implementation, without_initial, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths(implementation: Implementation, dtype: torch.dtype) -> None:
    """None, one step, all of them, and ends inside and at the edges of whatever time is cut into."""
    lengths = [70, 0, 1, 64, 33, 8, 69]
    for H in (16, 5):  # a vector of channels belongs to one sequence, or not
        problem = draw(70, 7, 3, H, dtype=dtype, lengths=lengths)
        check_outputs(implementation, problem, dtype)
        check_gradients(implementation, problem, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_membrane_that_rounds_onto_a_bound_passes_no_gradient(
    fused_implementation: Implementation, dtype: torch.dtype
) -> None:
    """Kept in 16 bits, one that a bound has stopped cannot be told from one just beside it, and may lie inside."""
    for bound in (0.9, -0.45, 0.3):
        beside = torch.tensor(bound, dtype=dtype)
        x = torch.stack([0 * beside, beside, 4 * beside, 0.9 * beside]).reshape(4, 1, 1)
        bounds = (-math.inf, bound) if bound > 0 else (bound, math.inf)
        problem = Problem(
            x,
            torch.ones(1, 1),
            torch.zeros(1),
            None,
            None,
            torch.ones(()),
            torch.ones(()),
            None,
            membrane_bounds=bounds,
        )
        moved = problem.to(dtype, fused_implementation.device)
        _, membrane, _ = fused_implementation.run(**moved.arguments())
        assert torch.equal(membrane[1:3].flatten().cpu(), torch.stack([beside, beside]))
        membrane.sum().backward()
        assert moved.x.grad.flatten().tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(("biases", "initial", "per_neuron"), list(product([0, 1, 2], [False, True], [False, True])))
def test_optional_arguments(implementation: Implementation, biases: int, initial: bool, per_neuron: bool) -> None:
    problem = draw(40, 2, 3, 8, dtype=torch.float32, biases=biases, initial=initial, per_neuron=per_neuron)
    check_outputs(implementation, problem, torch.float32)
    check_gradients(implementation, problem, torch.float32)


@pytest.mark.parametrize(
    "shape", [(5, 0, 3, 4), (0, 0, 3, 4), (0, 2, 3, 4), (3, 1, 1, 1), (9, 130, 2, 1), (70, 1, 4, 512)]
)
def test_shapes(implementation: Implementation, shape: tuple[int, int, int, int]) -> None:
    for dtype in (torch.float32, torch.float64):
        check_outputs(implementation, draw(*shape, dtype=dtype), dtype)
        check_gradients(implementation, draw(*shape, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("spike_grad", SURROGATES, ids=repr)
def test_surrogates(
    implementation: Implementation, spike_grad: surrogate.SurrogateGradient, dtype: torch.dtype
) -> None:
    check_gradients(implementation, draw(20, 2, 3, 12, dtype=dtype), dtype, spike_grad=spike_grad)


def test_a_callable_runs_in_pytorch(implementation: Implementation) -> None:
    fused = surrogate.fast_sigmoid(slope=5)
    if implementation.recomputes:
        with pytest.raises(ValueError, match="recompute must be False where the spike .* The kernels have the"):
            implementation.run(**draw(20, 2, 3, 12).arguments(), spike_grad=lambda v: fused(v))
        return
    check_gradients(implementation, draw(20, 2, 3, 12), torch.float64, spike_grad=lambda v: fused(v))


def test_strided_inputs(implementation: Implementation) -> None:
    problem = draw(33, 4, 6, 16, dtype=torch.float32)
    moved = problem.to(torch.float32, implementation.device)
    expected = implementation.run(**moved.arguments())
    wide = torch.empty(33, 4, 13, device=implementation.device)
    wide[..., 1::2] = moved.x.detach()
    views = {
        "sliced": wide[..., 1::2],
        "transposed": moved.x.detach().transpose(0, 1).contiguous().transpose(0, 1),
        "shifted": torch.cat([moved.x.detach().flatten()[:1], moved.x.detach().flatten()])[1:].view(33, 4, 6),
    }
    for name, x in views.items():
        results = implementation.run(**{**moved.arguments(), "x": x})
        for result, same in zip(results, expected, strict=True):
            torch.testing.assert_close(
                result, same, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_expanded_inputs_and_gradients(implementation: Implementation) -> None:
    problem = draw(20, 1, 3, 8, dtype=torch.float64)
    wide = Problem(**{**problem.arguments(), "x": problem.x.detach().expand(20, 3, 3)})
    wide.initial_membrane = problem.initial_membrane.detach().expand(3, 8)
    ones = torch.ones((), dtype=torch.float64)
    cotangents = (ones.expand(20, 3, 8), ones.expand(20, 3, 8), ones.expand(3, 8))
    exact = gradients(None, wide, torch.float64, cotangents)
    moved = problem.to(torch.float64, implementation.device)
    arguments = moved.arguments()
    arguments["x"] = moved.x.expand(20, 3, 3)
    arguments["initial_membrane"] = moved.initial_membrane.expand(3, 8)
    sum(result.sum() for result in implementation.run(**arguments)).backward()
    torch.testing.assert_close(moved.x.grad.cpu(), exact["x"].sum(1, keepdim=True))
    torch.testing.assert_close(moved.weight.grad.cpu(), exact["weight"])
    torch.testing.assert_close(moved.initial_membrane.grad.cpu(), exact["initial_membrane"].sum(0, keepdim=True))


def test_a_nan_stays_visible(implementation: Implementation) -> None:
    problem = draw(40, 2, 3, 5, dtype=torch.float32)
    problem.x.data[11, 1, 0] = math.nan
    moved = problem.to(torch.float32, implementation.device)
    _, membrane, last = implementation.run(**moved.arguments())
    assert not bool(membrane[:, 0].isnan().any())
    assert not bool(membrane[:11].isnan().any())
    assert bool(membrane[11:, 1].isnan().all())
    assert bool(last[1].isnan().all())


def test_gradcheck_of_the_membrane(implementation: Implementation) -> None:
    """In float64, on a problem whose steps all stay clear of relu's kink."""
    problem = draw(150, 1, 3, 5, seed=30)
    moved = problem.to(torch.float64, implementation.device)
    _, membrane, _ = run_reference(**problem.arguments())
    u = problem.x @ problem.weight.T + problem.bias_ih + problem.bias_hh
    unclipped = problem.decay * torch.cat([problem.initial_membrane[None], membrane])[:-1] + u
    assert unclipped.abs().min() > 5e-3
    names = list(moved.tensors())

    def through(*tensors: Tensor) -> tuple[Tensor, ...]:
        return implementation.run(**{**moved.arguments(), **dict(zip(names, tensors, strict=True))})[1:]

    inputs = list(moved.tensors().values())
    assert torch.autograd.gradcheck(through, inputs, eps=1e-7, atol=1e-5, fast_mode=True)


def test_only_what_is_needed_is_computed(fused_implementation: Implementation) -> None:
    """Each tensor alone gives the gradient that it has among all."""
    problem = draw(40, 2, 3, 8, dtype=torch.float64)
    cotangents = cotangents_for(problem, torch.float64)
    exact = gradients(None, problem, torch.float64, cotangents)
    for name in problem.tensors():
        moved = problem.to(torch.float64, fused_implementation.device)
        for other, tensor in moved.tensors().items():
            tensor.requires_grad_(other == name)
        results = fused_implementation.run(**moved.arguments())
        sum((r * c.to(r.device)).sum() for r, c in zip(results, cotangents, strict=True) if r.requires_grad).backward()
        torch.testing.assert_close(getattr(moved, name).grad.cpu(), exact[name])


def test_two_runs_give_equal_bits(fused_implementation: Implementation) -> None:
    problem = draw(300, 3, 5, 40, dtype=torch.float32)
    cotangents = cotangents_for(problem, torch.float32)
    first, second = (outputs(fused_implementation, problem, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    one, two = (gradients(fused_implementation, problem, torch.float32, cotangents) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_order_of_threads_and_blocks_does_not_show(emulated_implementation: Implementation) -> None:
    """A missing barrier, or a carry that depends on which predecessor was found, would change bits."""
    problem = draw(600, 2, 3, 70, dtype=torch.float32)
    cotangents = cotangents_for(problem, torch.float32)

    def everything() -> list[Tensor]:
        grads = gradients(emulated_implementation, problem, torch.float32, cotangents)
        return [*outputs(emulated_implementation, problem, torch.float32), *grads.values()]

    expected = everything()
    for order, resident_blocks in (("reverse", 1), ("reverse", 8), ("random:1", 3), ("random:2", 8), ("forward", 64)):
        with schedule(emulated_library(), order, resident_blocks):
            permuted = everything()
        assert all(torch.equal(a, b) for a, b in zip(permuted, expected, strict=True)), (order, resident_blocks)


def test_chunks_of_time_join_without_a_seam(fused_implementation: Implementation) -> None:
    """However many steps are projected at a time: bits of the sequential scan, values of the look-back scan."""
    problem = draw(50, 2, 4, 16, dtype=torch.float32).to(torch.float32, fused_implementation.device)
    scan = "sequential" if "sequential" in fused_implementation.name else "look_back"

    def run(gemm_chunk: int) -> tuple[Tensor, ...]:
        plan = leakypar.Plan(scan, scan, gemm_chunk, gemm_chunk)
        results = leakypar.leaky_parallel(**problem.arguments(), plan=plan, return_membrane=True, return_state=True)
        return *results, *torch.autograd.grad(sum(result.sum() for result in results), problem.tensors().values())

    whole = run(50)
    for gemm_chunk in (1, 7, 49, 1000):
        for piece, same in zip(run(gemm_chunk), whole, strict=True):
            torch.testing.assert_close(piece, same, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_in_pieces(implementation: Implementation, dtype: torch.dtype) -> None:
    """Each from the final membrane of the one before: the whole, to rounding."""
    problem = draw(90, 2, 4, 16, dtype=dtype)
    _, exact, exact_last = run_reference(**problem.to(torch.float64).arguments())
    margin = rounding_margin(problem, dtype, implementation.rounds_state)
    moved = problem.to(dtype, implementation.device)
    carry, pieces = moved.initial_membrane, []
    for x in moved.x.split([1, 40, 49]):
        _, membrane, carry = implementation.run(**{**moved.arguments(), "x": x, "initial_membrane": carry})
        pieces.append(membrane.detach().cpu())
    assert carry is not None
    assert within_margin(torch.cat(pieces), exact, margin)
    assert within_margin(carry.detach().cpu(), exact_last, margin[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "N"), [(40, 2), (300, 2), (100, 48), (2200, 1)])
def test_saved_memory(fused_implementation: Implementation, T: int, N: int, dtype: torch.dtype) -> None:
    """Training keeps input, parameters and the membrane [T, N, H], or checkpoints, a sixteenth of its bytes at most."""
    problem = draw(T, N, 3, 8, dtype=dtype).to(dtype, fused_implementation.device)
    given = {tensor.data_ptr() for tensor in problem.tensors().values()}
    recompute = fused_implementation.recomputes
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() > 0 and tensor.data_ptr() not in given:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        leakypar.leaky_parallel(**problem.arguments(), recompute=recompute)
    if recompute:
        assert 16 * sum(checkpoints.nbytes for checkpoints in kept) <= T * N * 8 * dtype.itemsize
    else:
        (membrane,) = kept
        assert membrane.shape == (T, N, 8)
        assert membrane.dtype == dtype


def test_an_offset_gradient_is_read_where_it_lies(fused_implementation: Implementation) -> None:
    """A gradient may begin anywhere in its storage: wide accesses are for those that begin on a boundary."""
    problem = draw(33, 1, 3, 16, dtype=torch.float32)
    moved = problem.to(torch.float32, fused_implementation.device)
    spikes, *_ = fused_implementation.run(**moved.arguments())
    cotangent = torch.randn(spikes.numel() + 1, device=spikes.device)[1:].view_as(spikes)
    (offset,) = torch.autograd.grad(spikes, moved.x, cotangent, retain_graph=True)
    (aligned,) = torch.autograd.grad(spikes, moved.x, cotangent.clone())
    torch.testing.assert_close(offset, aligned, rtol=1e-5, atol=1e-6)
