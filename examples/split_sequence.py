"""One long sequence split over devices, exactly: each process runs its piece, and the result is the unsplit layer's.

A piece of K steps maps the membrane before it to the membrane after it by a clamped affine map, for each sequence and
neuron one, ``h -> clamp(w^K h + offset)``, or ``clamp(w^K (h + offset))`` where ``|w| > 1`` and the first would
overflow: the algebra of csrc/math/clamp_affine.h. So nobody waits for a neighbour's result:

    forward    each process finds its piece's (offset, below, above), all exchange them, each applies those before its
               own to the membrane that the sequence begins with, and runs its piece from there
    backward   each runs its piece backward; the gradient that a piece passes to the one before it is an affine map of
               the one it gets from the one after, r -> w^K r + b with b what its own spikes ask for, and just b where
               a bound has stopped it; all exchange these, and each applies those after its own

The command line does it with gloo on one machine, to show that it is exact; docs/scaling.md has the price.

    python examples/split_sequence.py --processes 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from leakypar import LeakyParallel


def split_forward(layer: LeakyParallel, piece: Tensor) -> Tensor:
    """Runs this process's piece of a sequence, as if the whole had been run in one.

    Every process of the default group calls this, with the same parameters, on consecutive pieces in the order of their
    ranks, of whatever lengths; and every process calls backward, with a loss whose sum over processes is that of the
    whole. The gradient of the parameters is then this piece's share: its sum over processes is that of the whole.

    Args:
        layer: with a diagonal recurrence.
        piece: input, `[K, N, C]`, K > 0.

    Returns:
        Spikes, `[K, N, H]`.

    Raises:
        ValueError: some piece has no steps; every process raises.
    """
    with torch.no_grad():
        lengths = [int(length) for length in _gather(torch.tensor(len(piece), device=piece.device))]
        if 0 in lengths:
            raise ValueError(f"piece must have a step in every process, got lengths {lengths}")
        maps = _gather(piece_map(layer, piece))
        carry = torch.zeros_like(maps[0][0])
        for length, piece_before in islice(zip(lengths, maps, strict=True), dist.get_rank()):
            carry = apply_map(layer, piece_before, length, carry)

    # This run is there for the gradient that the final membrane passes on to the piece, and for it alone: the spikes'
    # own is that of the run below. A kernel would go through both gradients at once.
    _, membrane, final = layer(piece, initial_membrane=carry, return_membrane=True, return_state=True)
    lower, upper = layer.membrane_bounds
    passes = ((membrane > lower) & (membrane < upper)).all(0)  # else a bound has stopped what the carry contributes
    carry = _Carry.apply(final, carry, passes, _thirds(layer, len(piece), carry.dtype))  # type: ignore[no-untyped-call]
    spikes: Tensor = layer(piece, initial_membrane=carry)
    return spikes


def piece_map(layer: LeakyParallel, piece: Tensor) -> Tensor:
    """A piece's map from the membrane before it to the one after it, for membranes of any sign.

    Each step is monotone, so that what lies between the limits of the first, run through the other steps, bounds the
    image of the piece. `below` begins at the lower bound of the membrane, `above` at the upper one (the other way round
    where the decay is negative).

    Args:
        layer: with a diagonal recurrence.
        piece: input, `[K, N, C]`, K > 0.

    Returns:
        offset, below and above, `[3, N, H]`, in the state dtype: float64 for float64, else float32.
    """
    weight, _, *biases = layer.rnn()
    dtype = torch.promote_types(piece.dtype, torch.float32)
    decay = layer.rnn.decay().to(dtype)
    lower, upper = layer.membrane_bounds
    u = F.linear(piece.to(dtype), weight.to(dtype))
    for bias in biases:
        u = u if bias is None else u + bias.to(dtype)
    grows = decay.abs() > 1
    reciprocal = torch.where(grows, decay, 1).reciprocal()
    constant = u[0].clamp(lower, upper)  # of a decay of 0, whose product with infinity is none
    b, below, above = u[0], torch.full_like(u[0], lower), torch.full_like(u[0], upper)
    below, above = (torch.where(decay == 0, constant, end) for end in (below, above))
    for u_t in u[1:]:
        b = decay * b + u_t
        below, above = ((decay * end + u_t).clamp(lower, upper) for end in (below, above))
    # From the last term on: a power that underflows multiplies nothing that it should not.
    c = torch.zeros_like(u[0])
    for u_t in u.flip(0):
        c = reciprocal * (u_t + c)
    return torch.stack([torch.where(grows, c, b), below, above])


def apply_map(layer: LeakyParallel, piece: Tensor, steps: int, membrane: Tensor) -> Tensor:
    """The membrane after a piece of `steps` steps from the finite one before it, both `[N, H]`, by the piece's map."""
    offset, below, above = piece
    grows = layer.rnn.decay().detach().abs() > 1
    value = torch.where(grows, membrane + offset, membrane)
    for power in _thirds(layer, steps, membrane.dtype):
        value = value * power
    value = torch.where(grows, value, value + offset)
    return torch.clamp(value, torch.minimum(below, above), torch.maximum(below, above))


def _thirds(layer: LeakyParallel, steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Factors, `[H]`, of the decay to the power of so many steps: alone it may overflow where its product does not."""
    largest = torch.finfo(dtype).max
    decay = layer.rnn.decay().detach().to(dtype)
    return [(decay ** ((steps + i) // 3)).clamp(-largest, largest) for i in range(3)]


class _Carry(torch.autograd.Function):
    """The membrane before a piece, joined to the final membrane of the piece in this process, whose gradient it sends.

    Forward it is the identity on ``carry``: that the pieces before determine it was worked out without a graph.
    """

    @staticmethod
    def forward(ctx: Any, final: Tensor, carry: Tensor, passes: Tensor, thirds: list[Tensor]) -> Tensor:
        ctx.save_for_backward(passes, *(power.expand_as(carry) for power in thirds))
        return carry.clone()

    @staticmethod
    def backward(ctx: Any, grad_carry: Tensor) -> tuple[Tensor, None, None, None]:
        """From what this piece's spikes ask of its initial membrane to what the later pieces ask of its final one."""
        passes, *thirds = ctx.saved_tensors
        maps = _gather(torch.stack([grad_carry, passes.to(grad_carry.dtype), *thirds]))
        grad_final = torch.zeros_like(grad_carry)
        for b, passing, first, second, third in reversed(maps[dist.get_rank() + 1 :]):
            # What a bound has stopped is masked, not multiplied by zero: it may be infinite.
            grad_final = torch.where(passing > 0, grad_final * first * second * third + b, b)
        return grad_final, None, None, None


def _gather(value: Tensor) -> list[Tensor]:
    """The tensor of every process, by rank; all of one shape."""
    values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(values, value.contiguous())
    return values


def run_pieces(
    layer: LeakyParallel, x: Tensor, grad_spikes: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Runs a sequence forward and backward in processes of its own, one for each piece, on the CPU.

    Args:
        layer: whose parameters all processes get.
        x: `[T, N, C]`.
        grad_spikes: gradient of the spikes, `[T, N, H]`.
        lengths: of the pieces, which sum to T.

    Returns:
        The spikes `[T, N, H]`, the gradient of `x`, and the gradients of the parameters by name.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save((layer, *(torch.split(value, list(lengths)) for value in (x, grad_spikes))), folder / "problem.pt")
        spawn(_work, args=(folder, len(lengths)), nprocs=len(lengths))  # type: ignore[no-untyped-call]
        found = [torch.load(folder / f"result{rank}.pt") for rank in range(len(lengths))]
    spikes, grad_x = (torch.cat([result[name] for result in found]) for name in ("spikes", "x"))
    return spikes, grad_x, found[0]["parameters"]


def _work(rank: int, folder: Path, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    layer, pieces, grads = torch.load(folder / "problem.pt", weights_only=False)
    piece = pieces[rank].clone().requires_grad_()
    spikes = split_forward(layer, piece)
    torch.autograd.backward(spikes, grads[rank])
    gradients = {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    for gradient in gradients.values():
        dist.all_reduce(gradient)  # the sum, where DistributedDataParallel would take the mean
    result = {"spikes": spikes.detach(), "x": piece.grad, "parameters": gradients}
    torch.save(result, folder / f"result{rank}.pt")
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Splits a sequence of random spikes, and says how far the result is from the unsplit layer's."""
    parser = argparse.ArgumentParser(description="Splits one sequence over processes, and compares with one process.")
    parser.add_argument("--processes", type=int, choices=range(1, 9), default=3, metavar="1..8")
    parser.add_argument("--steps", type=int, default=3000, help="of the whole sequence; default: 3000")
    options = parser.parse_args(arguments)
    if options.steps < options.processes:
        parser.error(f"--steps: got {options.steps}, expected at least one for each of {options.processes} processes")

    torch.manual_seed(0)
    layer = LeakyParallel(64, 128, beta=0.95, learn_beta=True, dtype=torch.float64)
    x = (torch.rand(options.steps, 2, 64, dtype=torch.float64) < 0.2).double().requires_grad_()
    grad_spikes = torch.randn(options.steps, 2, 128, dtype=torch.float64)
    spikes = layer(x)
    torch.autograd.backward(spikes, grad_spikes)
    lengths = [len(part) for part in torch.arange(options.steps).tensor_split(options.processes)]
    split_spikes, split_x, split_parameters = run_pieces(layer, x.detach(), grad_spikes, lengths)

    print(f"pieces of {lengths} steps; {spikes.mean().item():.1%} of the membranes spike")
    print(f"spikes that differ: {int((spikes != split_spikes).sum())} of {spikes.numel()}")
    whole = {"x": x.grad, **{name: value.grad for name, value in layer.named_parameters()}}
    for name, gradient in {"x": split_x, **split_parameters}.items():
        expected = whole[name]
        if expected is not None:
            print(f"gradient of {name}: relative error {float((gradient - expected).norm() / expected.norm()):.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
