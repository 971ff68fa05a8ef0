"""One sequence split over processes: forward and gradients are those of the unsplit layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from examples.split_sequence import main, piece_map, run_pieces
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


@pytest.mark.parametrize("lengths", [(20, 20), (1, 17, 24)])
@pytest.mark.parametrize("backend", ["rnn", "fused"])
def test_a_split_sequence_is_the_whole_one(lengths: tuple[int, ...], backend: str) -> None:
    if backend == "fused" and not ops.is_available("cpu"):
        pytest.skip(ops.unavailable_reason("cpu"))
    layer = mixed_layer(backend)
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


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_a_map_is_its_piece(steps: int) -> None:
    layer = mixed_layer()
    piece = sequence(steps, C)
    b, lo, hi = piece_map(layer, piece)
    assert (lo <= hi).all()
    a = layer.rnn.weight_hh_l0.diagonal() ** steps
    for before in (sequence(1, H)[0], 1e3 * sequence(1, H)[0], torch.zeros(N, H, dtype=torch.float64)):
        _, after = layer(piece, initial_membrane=before, return_state=True)
        torch.testing.assert_close(torch.clamp(a * before + b, lo, hi), after, rtol=1e-9, atol=1e-9)


def test_the_largest_membrane_makes_no_nan() -> None:
    layer = mixed_layer().float()
    with torch.no_grad():
        layer.rnn.weight_hh_l0.diagonal().mul_(2)
    found = piece_map(layer, sequence(400, C).float())
    assert found.dtype == torch.float32
    assert found.isfinite().all()


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
