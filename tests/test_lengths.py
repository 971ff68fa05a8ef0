"""Sequences that end before their batch does, and `PackedSequence`s of them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import leakypar
from leakypar import LeakyParallel, reference, surrogate

from .implementations import Implementation, run_reference
from .layers import each_backend, expected, gradients, parameters, without_kernels
from .problems import Problem, draw

C, H, T = 5, 12, 30
LENGTHS = [30, 0, 1, 17]
LEARNED: dict[str, Any] = {"beta": 0.9, "threshold": 0.2, "learn_beta": True, "learn_threshold": True}


def layer(backend: str, **options: Any) -> LeakyParallel:
    torch.manual_seed(0)
    learned = LEARNED | {"learn_graded_spikes_factor": True}
    return LeakyParallel(C, H, backend=backend, dtype=torch.float64, **{**learned, **options})


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(T, len(LENGTHS), C, dtype=torch.float64), torch.tensor(LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sequence_is_what_it_is_alone_to_the_bit(fused_implementation: Implementation, dtype: torch.dtype) -> None:
    """Beside others of its own length and in the same tiles, so that the plan is the same.

    One input feature of weight 1: a product of other sizes may sum otherwise, which is the vendor's choice.
    """
    lengths = [200, 70, 64, 129]  # none shorter than a block's tile of time
    problem = draw(200, 4, 1, 16, dtype=dtype, lengths=lengths, decay="above-one")
    problem.weight.data.fill_(1.0)
    run = fused_implementation.run
    if "project_scan" in fused_implementation.name and dtype == torch.bfloat16:
        tiles = leakypar.launch_plan.Tiles(64, 1, 2, True, 2)
        plan = leakypar.Plan("project_scan", "look_back", 1000, 1000, tiles)
        run = partial(leakypar.leaky_parallel, plan=plan, return_membrane=True, return_state=True)
    together = problem.to(dtype, fused_implementation.device)
    outputs = run(**together.arguments())
    (outputs[1].sum() + outputs[2].sum()).backward()
    for n, length in enumerate(lengths):
        alone = Problem(**problem.arguments() | {"x": problem.x[:length], "lengths": None})
        alone = alone.to(dtype, fused_implementation.device)
        results = run(**alone.arguments())
        (results[1].sum() + results[2].sum()).backward()
        assert torch.equal(outputs[0][:length, n], results[0][:, n])
        assert torch.equal(outputs[1][:length, n], results[1][:, n])
        assert torch.equal(outputs[2][n], results[2][n])
        assert torch.equal(together.initial_membrane.grad[n], alone.initial_membrane.grad[n])


def test_what_lies_beyond_reaches_nothing(implementation: Implementation) -> None:
    """NaN and infinity in the input and in every gradient there, as if they were zeros."""
    found = []
    for padding in (0.0, math.nan, math.inf):
        problem = draw(70, 3, 4, 16, dtype=torch.float32, lengths=[70, 0, 33]).to(torch.float32, implementation.device)
        over = problem.over().to(implementation.device)
        problem.x.data.masked_fill_(over, padding)
        spikes, membrane, final = implementation.run(**problem.arguments())
        assert not spikes.masked_select(over).any()
        assert torch.equal(membrane[33:, 2], final[2].expand(37, -1))
        assert torch.equal(membrane[:, 1], problem.initial_membrane[1].expand(70, -1))
        grads = [torch.ones_like(each).masked_fill(over, padding) for each in (spikes, membrane)]
        torch.autograd.backward((spikes, membrane, final), (*grads, torch.ones_like(final)))
        tensors = problem.tensors().values()
        found.append([spikes.detach(), membrane.detach(), final.detach(), *(tensor.grad for tensor in tensors)])
        assert not problem.x.grad.masked_select(over).any()
        assert all(bool(each.isfinite().all()) for each in found[-1])
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@each_backend
@pytest.mark.parametrize("spike_grad", [None, lambda v: surrogate.fast_sigmoid()(v)], ids=["kernel", "callable"])
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-0.45, 0.9)], ids=str)
def test_the_layer_is_the_specification(backend: str, spike_grad: Any, bounds: tuple[float, float]) -> None:
    """With the membrane returned, through which the spikes' gradient then flows, and without."""
    if backend == "rnn" and bounds[1] < math.inf:
        pytest.skip("nn.RNN has no such bounds")
    ours, (x, lengths) = layer(backend, spike_grad=spike_grad, membrane_bounds=bounds), inputs()
    for returned in ({}, {"return_membrane": True, "return_state": True}):
        outputs = ours(x, lengths=lengths, **returned)
        wanted = expected(ours, x, lengths=lengths, membrane_bounds=bounds, **returned)
        outputs, wanted = ((each if returned else (each,)) for each in (outputs, wanted))
        for one, other in zip(outputs, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        exact = gradients(ours, *wanted)
        for name, gradient in gradients(ours, *outputs).items():
            torch.testing.assert_close(gradient, exact[name], rtol=1e-9, atol=1e-12)


@each_backend
def test_one_sequence_without_a_batch(backend: str) -> None:
    ours, (x, _) = layer(backend), inputs()
    for length in (0, 9, T):
        spikes, final = ours(x[:, 0], lengths=torch.tensor(length), return_state=True)
        alone, last = ours(x[:length, 0], return_state=True)
        torch.testing.assert_close(spikes[:length], alone)
        torch.testing.assert_close(final, last)
        assert not spikes[length:].any()


@each_backend
def test_nothing_of_any_sequence(backend: str) -> None:
    ours, (x, lengths) = layer(backend), inputs()
    initial = torch.rand(len(LENGTHS), H, dtype=torch.float64, requires_grad=True)
    spikes, final = ours(x, lengths=0 * lengths, initial_membrane=initial, return_state=True)
    assert torch.equal(final, initial)
    assert not spikes.any()
    (spikes.sum() + final.sum()).backward()
    assert torch.equal(initial.grad, torch.ones_like(initial))
    assert ours.rnn.weight_ih_l0.grad is None or not ours.rnn.weight_ih_l0.grad.any()


def sequences(lengths: list[int]) -> list[Tensor]:
    return [torch.randn(length, C, dtype=torch.float64) for length in lengths]


@each_backend
@pytest.mark.parametrize("lengths", [[9, 7, 7, 1], [3, 9, 1, 4]], ids=["sorted", "unsorted"])
def test_a_packed_sequence_gives_a_packed_sequence(backend: str, lengths: list[int]) -> None:
    ours, given = layer(backend), sequences(lengths)
    packed = pack_sequence(given, enforce_sorted=lengths == sorted(lengths, reverse=True))
    initial = torch.rand(4, H, dtype=torch.float64)
    options: dict[str, Any] = {"return_membrane": True, "return_state": True}
    spikes, membrane, final = ours(packed, initial_membrane=initial, **options)
    for result in (spikes, membrane):
        assert isinstance(result, PackedSequence)
        assert torch.equal(result.batch_sizes, packed.batch_sizes)
        for name in ("sorted_indices", "unsorted_indices"):
            mine, theirs = getattr(result, name), getattr(packed, name)
            assert mine is theirs is None or torch.equal(mine, theirs)
    padded = [pad_packed_sequence(result)[0] for result in (spikes, membrane)]
    for n, x in enumerate(given):
        alone = ours(x, initial_membrane=initial[n], **options)
        torch.testing.assert_close(padded[0][: len(x), n], alone[0])
        torch.testing.assert_close(padded[1][: len(x), n], alone[1])
        torch.testing.assert_close(final[n], alone[2])
    assert isinstance(ours(packed), PackedSequence)


@each_backend
def test_packed_sequences_pass_through_a_network_with_their_gradients(backend: str) -> None:
    network = nn.Sequential(layer(backend), LeakyParallel(H, 3, backend=backend, dtype=torch.float64, **LEARNED))
    given = sequences([3, 9, 1, 4])
    packed = network(pack_sequence(given, enforce_sorted=False))
    assert isinstance(packed, PackedSequence)
    ours = gradients(network, packed.data.sum())
    theirs = gradients(network, sum(network(x).sum() for x in given))
    assert ours["0.rnn.weight_ih_l0"].any()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient)


@without_kernels
def test_dropout_and_recomputation() -> None:
    ours, (x, lengths) = layer("fused", dropout=0.5, recompute=True), inputs()
    kept = layer("fused", dropout=0.5)
    found = []
    for each in (ours, kept):
        torch.manual_seed(3)
        spikes = each(x.repeat(40, 1, 1), lengths=40 * lengths)
        found.append([spikes.detach(), *gradients(each, spikes).values()])
    assert found[0][0].any()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(3)  # what drops out goes by its place, whatever the lengths are
    whole = kept(x.repeat(40, 1, 1))
    assert torch.equal(found[1][0][: 40 * 17, 3], whole[: 40 * 17, 3])


def test_chunks_of_time_join_without_a_seam(fused_implementation: Implementation) -> None:
    problem = draw(50, 4, 4, 16, dtype=torch.float32, lengths=[50, 0, 7, 22])
    problem = problem.to(torch.float32, fused_implementation.device)
    scan = "sequential" if "sequential" in fused_implementation.name else "look_back"

    def run(gemm_chunk: int) -> tuple[Tensor, ...]:
        plan = leakypar.Plan(scan, scan, gemm_chunk, gemm_chunk)
        results = leakypar.leaky_parallel(**problem.arguments(), plan=plan, return_membrane=True, return_state=True)
        return *results, *torch.autograd.grad(sum(result.sum() for result in results), problem.tensors().values())

    whole = run(50)
    for gemm_chunk in (1, 7):
        for piece, same in zip(run(gemm_chunk), whole, strict=True):
            torch.testing.assert_close(piece, same, rtol=1e-5, atol=1e-5)


@without_kernels
def test_an_input_of_events() -> None:
    """Additions in place of the products: what lies beyond is no event that counts."""
    x = (torch.rand(T, len(LENGTHS), 64) < 0.05).float()
    lengths = torch.tensor(LENGTHS)
    weight, decay = torch.randn(256, 64, requires_grad=True), torch.rand(256)
    results = [run(x, weight, decay, lengths=lengths) for run in (leakypar.leaky_parallel, reference.leaky_parallel)]
    torch.testing.assert_close(*results)
    assert results[0].any()
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), weight)[0] for each in results), rtol=1e-4, atol=1e-4)


@each_backend
def test_mapped_calls_are_a_loop_of_calls(backend: str) -> None:
    ours = layer(backend)
    x = torch.randn(3, T, len(LENGTHS), C, dtype=torch.float64)
    many = torch.stack([torch.tensor(LENGTHS).roll(i) for i in range(3)])

    def spikes_and_gradient(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.func.grad(lambda x: ours(x, lengths=lengths, return_membrane=True)[1].sum())(x)
        return ours(x, lengths=lengths), gradient

    for in_dims, lengths in (((0, 0), many), ((0, None), many[0])):
        mapped = torch.vmap(spikes_and_gradient, in_dims)(x, lengths)
        each = [spikes_and_gradient(x[i], lengths if lengths.dim() == 1 else lengths[i]) for i in range(3)]
        for together, alone in zip(mapped, zip(*each, strict=True), strict=True):
            torch.testing.assert_close(together, torch.stack(alone))


@each_backend
def test_compiled_the_layer_is_the_same(backend: str) -> None:
    ours, (x, lengths) = layer(backend), inputs()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = [run(x, lengths=lengths, return_membrane=True, return_state=True) for run in (compiled, ours)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    grads = [gradients(ours, *outputs) for outputs in found]
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def test_the_operator_takes_lengths_out_of_range_for_the_nearest(fused_implementation: Implementation) -> None:
    """Compiled code does not look at them, and nothing outside the arrays may be read."""
    problem = draw(40, 3, 2, 8, dtype=torch.float32, lengths=[-7, 2**62, 40])
    arguments = problem.to(torch.float32, fused_implementation.device).arguments()
    legal = arguments | {"lengths": arguments["lengths"].clamp(0, 40)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leakypar.functional.check_lengths", lambda *_: None)
        found = fused_implementation.run(**arguments)
    assert all(torch.equal(*pair) for pair in zip(found, fused_implementation.run(**legal), strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_a_gpu() -> None:
    ours, (x, lengths) = layer("fused").cuda(), (each.cuda() for each in inputs())
    ours(x, lengths=lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours(x, lengths=lengths, return_state=True)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (LENGTHS, TypeError, r"lengths must be an int64 tensor \[N\], got list"),
        (torch.tensor(LENGTHS).int(), TypeError, "lengths must be a dense tensor of torch.int64, got torch.int32"),
        (torch.tensor([1, 2, 3]), ValueError, r"lengths must have shape \[N\] = \[4\] for x .*, got \[3\]"),
        (torch.tensor(3), ValueError, r"lengths must have shape \[N\] = \[4\]"),
        (torch.tensor([1, 2, 3, -1]), ValueError, "lengths must be from 0 to T = 30, got from -1 to 3"),
        (torch.tensor([1, 2, 31, 0]), ValueError, "lengths must be from 0 to T = 30, got from 0 to 31"),
        (torch.tensor(LENGTHS, device="meta"), ValueError, "lengths must be on the device of x, cpu, got meta"),
    ],
)
def test_bad_lengths_are_named(lengths: Any, error: type[Exception], message: str) -> None:
    x, _ = inputs()
    for run in (leakypar.leaky_parallel, reference.leaky_parallel, leakypar.rnn.leaky_parallel):
        with pytest.raises(error, match=message):
            run(x, *parameters(layer("rnn")), lengths=lengths)
    with pytest.raises(error, match=message):
        layer("rnn")(x, lengths=lengths)


def test_bad_packed_sequences_are_named() -> None:
    ours, packed = layer("rnn"), pack_sequence(sequences([3, 2]))
    with pytest.raises(ValueError, match="lengths must be None for a PackedSequence"):
        ours(packed, lengths=torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="x must have 5 input features"):
        ours(pack_sequence([torch.randn(3, 4, dtype=torch.float64)]))
    with pytest.raises(TypeError, match="x must be a tensor .* got a PackedSequence: a layer takes one"):
        reference.leaky_parallel(packed, *parameters(ours))


def test_the_specification_is_a_loop_over_sequences() -> None:
    """What every implementation is held to, held to itself on one sequence at a time."""
    problem = draw(9, 3, 2, 4, lengths=[9, 0, 4])
    spikes, membrane, final = run_reference(**problem.arguments())
    for n, length in enumerate([9, 0, 4]):
        one = problem.arguments() | {"x": problem.x[:length, n : n + 1], "lengths": None}
        alone = run_reference(**one | {"initial_membrane": problem.initial_membrane[n : n + 1]})
        torch.testing.assert_close(spikes[:length, n], alone[0][:, 0])
        torch.testing.assert_close(membrane[:length, n], alone[1][:, 0])
        torch.testing.assert_close(final[n], alone[2][0])
        assert torch.equal(membrane[length:, n], final[n].expand(9 - length, -1))
