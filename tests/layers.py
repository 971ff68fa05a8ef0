"""What the tests of the module share: its backends, and what the specification gives for a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from leakypar import LeakyParallel, ops, reference

without_kernels = pytest.mark.skipif(not ops.is_available("cpu"), reason="extension not built for CPU")

each_backend = pytest.mark.parametrize("backend", ["rnn", pytest.param("fused", marks=without_kernels)])


def parameters(layer: LeakyParallel) -> tuple[Tensor | None, ...]:
    """A layer's parameters and buffers, in the order in which the functional forms take them."""
    weights = layer.rnn
    return (
        weights.weight_ih_l0,
        weights.weight_hh_l0 if layer.weight_hh_enable else weights.decay(),
        weights.bias_ih_l0,
        weights.bias_hh_l0,
        layer.threshold,
        layer.graded_spikes_factor,
    )


def expected(layer: LeakyParallel, x: Tensor, **options: Any) -> Any:
    """What the specification gives for a layer's parameters and surrogate."""
    options = {"spike_grad": layer.spike_grad, "surrogate_disable": layer.surrogate_disable} | options
    return reference.leaky_parallel(x, *parameters(layer), **options)


def gradients(layer: torch.nn.Module, *outputs: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The gradients, by parameter, of a fixed random weighting of the outputs.

    The weights are small integers, because snntorch's spikes are float32: sums of these are exact in it.
    """
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        loss = loss + (output.double() * torch.randint(-4, 5, output.shape, generator=generator)).sum()
    named = {name: value for name, value in layer.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def assert_diagonal(matrix: Tensor) -> None:
    assert matrix.diagonal().count_nonzero() > 0
    assert torch.equal(matrix, torch.diag(matrix.diagonal()))
