"""The layer compiled ahead of time, for sizes that are known only when it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import leakypar

from .implementations import CPU, unavailable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable(CPU) is not None, reason=str(unavailable(CPU))),
]


class WithState(nn.Module):
    """Two layers, the first of which goes on from a state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = leakypar.LeakyParallel(12, 16, beta=0.9, backend="fused")
        self.second = leakypar.LeakyParallel(16, 5, bias=False, backend="fused")

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        spikes, final = self.first(x, initial_membrane=state, return_state=True)
        return self.second(spikes), final


def test_ahead_of_time_with_any_number_of_steps_and_sequences(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = WithState().eval()
    T, N = torch.export.Dim("T", min=1, max=4096), torch.export.Dim("N", min=1, max=512)
    with torch.no_grad():
        exported = torch.export.export(
            network, (torch.randn(20, 3, 12), torch.rand(3, 16)), dynamic_shapes=({0: T, 1: N}, {0: N})
        )
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "network.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        for steps, sequences in ((20, 3), (70, 7)):
            x, state = torch.randn(steps, sequences, 12), torch.rand(sequences, 16)
            expected = network(x, state)
            assert expected[0].any()
            for ours, theirs in zip(compiled(x, state), expected, strict=True):
                torch.testing.assert_close(ours, theirs)
