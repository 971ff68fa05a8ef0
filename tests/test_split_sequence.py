"""One sequence split over processes: forward and gradients are those of the unsplit layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from examples.split_sequence import apply_map, main, piece_map, run_pieces
from leakypar import LeakyParallel, ops

N, C, H = 3, 5, 24
DECAYS = torch.tensor([0.0, 1.0, -1.0, 0.9, -0.9, 0.5, 1.05, -1.05], dtype=torch.float64)


def mixed_layer(backend: str = "rnn") -> LeakyParallel:
    """Decays of every kind, three neurons each, whose weights make some membranes stay up and others fall to zero."""
    torch.manual_seed(0)
    layer = LeakyParallel(C, H, learn_beta=True, learn_threshold=True, dtype=torch.float64, backend=backend)
    with torch.no_grad():
        layer.rnn.weight_hh_l0.copy_(torch.diag(DECAYS.repeat(H // len(DECAYS))))
        layer.rnn.bias_hh_l0.copy_(torch.tensor([-0.4, 0.1, 0.9], dtype=torch.float64).repeat_interleave(len(DECAYS)))
    return layer


def sequence(T: int, width: int) -> Tensor:
    return torch.randn(T, N, width, dtype=torch.float64, generator=torch.Generator().manual_seed(T))


@pytest.mark.parametrize(("backend", "lengths"), [("rnn", (20, 20)), ("fused", (1, 17, 24))])
def test_a_split_sequence_is_the_whole_one(lengths: tuple[int, ...], backend: str) -> None:
    if backend == "fused" and not ops.is_available("cpu"):
        pytest.skip(ops.unavailable_reason("cpu"))
    layer = mixed_layer(backend)
    if backend == "fused":
        layer.membrane_bounds = (-0.5, 2.0)  # which nn.RNN has not
    x = sequence(sum(lengths), C).requires_grad_()
    grad_spikes = sequence(sum(lengths), H)
    spikes = layer(x)
    torch.autograd.backward(spikes, grad_spikes)
    assert 0.1 < spikes.mean() < 0.9

    split_spikes, split_x, split_parameters = run_pieces(layer, x.detach(), grad_spikes, lengths)
    assert torch.equal(split_spikes, spikes)
    torch.testing.assert_close(split_x, x.grad, rtol=1e-9, atol=1e-9)
    whole = {name: value.grad for name, value in layer.named_parameters()}
    assert split_parameters.keys() == whole.keys()
    for name, gradient in split_parameters.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-math.inf, math.inf), (-0.5, 2.0)])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_map_is_its_piece(steps: int, bounds: tuple[float, float]) -> None:
    layer = mixed_layer("auto")
    layer.membrane_bounds = bounds
    piece = sequence(steps, C)
    found = piece_map(layer, piece)
    for before in (sequence(1, H)[0], 1e3 * sequence(1, H)[0], torch.zeros(N, H, dtype=torch.float64)):
        _, after = layer(piece, initial_membrane=before, return_state=True)
        torch.testing.assert_close(apply_map(layer, found, steps, before), after, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [1.02, 1.1, 4.1, -4.1])
def test_a_power_of_the_decay_that_overflows_loses_no_sign(decay: float) -> None:
    """Inhibition but for one burst: the membrane is zero in the end, whatever it was."""
    layer = LeakyParallel(1, 1, bias=False)
    with torch.no_grad():
        layer.rnn.weight_ih_l0.fill_(1)
        layer.rnn.weight_hh_l0.fill_(decay)
    piece = torch.full((5000, 1, 1), -10.0)
    piece[1023] = 2.0
    before = torch.tensor([[1.0]])
    assert torch.equal(apply_map(layer, piece_map(layer, piece), len(piece), before), torch.zeros(1, 1))


def test_the_largest_membrane_makes_no_nan() -> None:
    layer = mixed_layer().float()
    with torch.no_grad():
        layer.rnn.weight_hh_l0.diagonal().mul_(2)
    found = piece_map(layer, sequence(400, C).float())
    assert found.dtype == torch.float32
    assert not apply_map(layer, found, 400, torch.full((N, H), torch.finfo(torch.float32).max)).isnan().any()


def test_the_command_reports_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--processes", "2", "--steps", "50"]) == 0
    printed = capsys.readouterr().out
    assert "pieces of [25, 25] steps" in printed
    assert "spikes that differ: 0 of 12800" in printed
    assert "gradient of rnn.weight_hh_l0: relative error" in printed


def test_fewer_steps_than_processes_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--processes", "3", "--steps", "2"])
    assert "expected at least one for each of 3 processes" in capsys.readouterr().err
