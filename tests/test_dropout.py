"""Dropout inside the kernels: which elements drop out, that nothing is stored for it, and how a seed reproduces it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import leakypar
from leakypar import Plan, launch_plan, surrogate

from .implementations import Implementation, fused
from .philox import next_factors, philox
from .problems import DTYPES, draw
from .test_ops import EVERYTHING, OPERATORS, forward_arguments, needs_cuda, on_each_device

# Rows that begin anywhere in a counter's four words, many chunks and tiles, and one element.
SHAPES = [(7, 3, 5), (70, 2, 64), (33, 3, 132), (300, 1, 4), (1, 1, 1)]


def transparent(T: int, N: int, H: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """A layer whose spikes are the mask, and whose input's gradient is the factors."""
    filled = {"dtype": dtype, "device": device}
    return {
        "x": torch.ones(T, N, H, **filled, requires_grad=True),
        "weight": torch.eye(H, **filled),
        "decay": torch.zeros(H, **filled),
        "bias_ih": None,
        "bias_hh": None,
        "threshold": torch.zeros((), **filled),
        "gain": torch.ones((), **filled),
        "initial_membrane": None,
        "spike_grad": surrogate.straight_through_estimator(),
    }


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_philox(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    """The generator of these tests against the vectors that Random123 publishes."""
    assert philox(np.array(counter, dtype=np.uint64), key).tolist() == list(words)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.25, 1.0])
def test_what_drops_out(
    fused_implementation: Implementation, shape: tuple[int, int, int], dtype: torch.dtype, p: float
) -> None:
    arguments = transparent(*shape, dtype, fused_implementation.device)
    torch.manual_seed(11)
    factors = next_factors(shape, p, fused_implementation.device)
    torch.manual_seed(11)
    spikes, membrane, _ = fused_implementation.run(**arguments, dropout=p)
    assert torch.equal(spikes, (factors > 0).to(dtype))
    assert torch.equal(membrane, torch.ones_like(membrane))
    (grad,) = torch.autograd.grad(spikes.sum(), arguments["x"])
    assert torch.equal(grad, factors.to(dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_specification(fused_implementation: Implementation, shape: tuple[int, int, int]) -> None:
    """Every gradient, in float64; the threshold's has no factor, and the recurrence sees no dropout."""
    T, N, H = shape
    device = fused_implementation.device
    ours, theirs = (draw(T, N, 6, H, seed=3).to(torch.float64, device) for _ in range(2))
    torch.manual_seed(12)
    mask = next_factors(shape, 0.4, device)
    torch.manual_seed(12)
    results = fused_implementation.run(**ours.arguments(), dropout=0.4)
    expected = leakypar.reference.leaky_parallel(
        **theirs.arguments(), dropout_mask=mask, return_membrane=True, return_state=True
    )
    assert torch.equal(results[0], expected[0])
    torch.testing.assert_close(results[1:], expected[1:], rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(result) for result in expected]

    def gradients(problem: Any, outputs: Any) -> tuple[Tensor, ...]:
        loss = sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True))
        return torch.autograd.grad(loss, list(problem.tensors().values()))

    torch.testing.assert_close(gradients(ours, results), gradients(theirs, expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "plan", [Plan("sequential", "sequential", 7, 11), Plan("look_back", "look_back", 40, 13)], ids=str
)
def test_chunks_see_the_elements_of_the_whole(fused_implementation: Implementation, plan: Plan) -> None:
    """Where training recomputes, its chunks are those of the checkpoints, whatever the plan says."""
    arguments = transparent(90, 2, 10, torch.float32, fused_implementation.device)
    grads = []
    for chosen, recompute in ((plan, fused_implementation.recomputes), (None, False)):
        torch.manual_seed(13)
        spikes = leakypar.leaky_parallel(**arguments, plan=chosen, dropout=0.5, recompute=recompute)
        grads += [spikes, *torch.autograd.grad(spikes.sum(), arguments["x"])]
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_it_is_a_dropout_with_probability_p(fused_implementation: Implementation, p: float) -> None:
    """Five standard deviations: of the rate, of each row's and column's, and of neighbours that drop out together."""
    shape = (64, 4, 128)
    torch.manual_seed(14)
    spikes = leakypar.leaky_parallel(**transparent(*shape, torch.float32, fused_implementation.device), dropout=p)
    dropped = (spikes.detach() == 0).double().cpu().reshape(64, -1)

    def bound(count: int, rate: float) -> float:
        return 5 * (rate * (1 - rate) / count) ** 0.5

    assert abs(dropped.mean().item() - p) < bound(dropped.numel(), p)
    for dim in (0, 1):
        assert (dropped.mean(dim) - p).abs().max().item() < bound(dropped.shape[dim], p) + 1 / dropped.shape[dim]
    for distance in (1, 4, 128, 512):  # neighbours, neighbouring counters, rows of the batch, time steps
        flat = dropped.flatten()
        together = (flat[distance:] * flat[:-distance]).mean().item()
        # Overlapping pairs share elements: their mean has up to three times the variance of as many separate ones.
        assert abs(together - p * p) < 3**0.5 * bound(flat.numel() - distance, p * p) + 2 * p * bound(flat.numel(), p)


def test_calls_differ_and_a_seed_repeats_them(fused_implementation: Implementation) -> None:
    arguments = transparent(40, 2, 32, torch.float32, fused_implementation.device)

    def calls() -> list[Tensor]:
        torch.manual_seed(15)
        return [leakypar.leaky_parallel(**arguments, dropout=0.5) for _ in range(2)]

    first, second = calls()
    assert not torch.equal(first, second)
    for one, other in zip((first, second), calls(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_drawn_without_dropout(fused_implementation: Implementation) -> None:
    torch.manual_seed(16)
    before = torch.get_rng_state()
    fused_implementation.run(**transparent(4, 2, 3, torch.float32, fused_implementation.device), dropout=0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_mask_is_kept(fused_implementation: Implementation) -> None:
    arguments = transparent(40, 2, 8, torch.float32, fused_implementation.device)
    kept: list[list[tuple[int, ...]]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept[-1].append(tuple(tensor.shape))
        return tensor

    for p in (0.0, 0.5):
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            leakypar.leaky_parallel(**arguments, dropout=p, recompute=fused_implementation.recomputes)
    assert sorted(kept[1]) == sorted([*kept[0], ()])  # the seed


def test_a_checkpoint_draws_the_same_again(fused_implementation: Implementation) -> None:
    arguments = transparent(40, 2, 8, torch.float32, fused_implementation.device)
    x = arguments.pop("x")
    spikes = checkpoint(lambda x: leakypar.leaky_parallel(x, **arguments, dropout=0.5), x, use_reentrant=False)
    (grad,) = torch.autograd.grad(spikes.sum(), x)
    assert torch.equal(grad > 0, spikes > 0)
    assert 0 < spikes.count_nonzero() < spikes.numel()


@on_each_device
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.compile's own internals
def test_compiled_it_drops_the_same_in_both_directions(compiler: str, device: str, recompute: bool) -> None:
    torch.compiler.reset()
    arguments = transparent(80, 2, 16, torch.float32, device)
    x = arguments.pop("x")
    step = torch.compile(
        lambda x: leakypar.leaky_parallel(x, **arguments, dropout=0.5, recompute=recompute),
        backend=compiler,
        fullgraph=True,
    )
    seen = []
    for seed in (17, 17, 18):
        torch.manual_seed(seed)
        spikes = step(x)
        (grad,) = torch.autograd.grad(spikes.sum(), x)
        assert torch.equal(grad > 0, spikes > 0)
        seen.append(spikes)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize(("library", "device"), OPERATORS)
def test_opcheck_and_wrong_seeds(library: Any, device: str) -> None:
    problem = draw(70, 2, 3, 5, dtype=torch.float32).to(torch.float32, device)
    arguments = forward_arguments(problem, EVERYTHING)
    seed = torch.tensor(2**40 + 5, device=device)

    def sample(seed: Tensor, p: float) -> tuple[object, ...]:
        return (*arguments[:9], seed, *arguments[10:12], p, *arguments[13:])

    torch.library.opcheck(library().forward.default, sample(seed, 0.5))
    for wrong, p, message in (
        (seed.int(), 0.5, "seed has dtype Int and 1 values, expected one of int64"),
        (seed.expand(2), 0.5, "seed has dtype Long and 2 values, expected one of int64"),
        (seed, 1.5, r"dropout is 1.5, expected a probability in \[0, 1\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            library().forward(*sample(wrong, p))


@needs_cuda
@pytest.mark.parametrize("plan", ["sequential", "look_back", "project_scan"])
def test_a_replayed_graph_draws_anew(plan: launch_plan.Method) -> None:
    implementation = fused(plan, "cuda", plan)
    arguments = transparent(64, 2, 64, torch.bfloat16, "cuda")

    def step() -> tuple[Tensor, Tensor]:
        spikes = implementation.run(**arguments, dropout=0.5)[0]
        return spikes.detach(), torch.autograd.grad(spikes.sum(), arguments["x"])[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spikes, grad = step()
    replays = []
    for _ in range(2):
        graph.replay()
        assert torch.equal(spikes > 0, grad > 0)
        replays.append(spikes.clone())
    assert not torch.equal(*replays)
