"""``leakypar.reference``, a plain loop over time, under ``torch.compile``: what the compiler makes of the definition.

The compiler unrolls a loop, and compiling all of a long sequence would take hours. In its best form, then, it compiles
the loop over a chunk of time, whose steps it fuses into one kernel, and the membrane passes from chunk to chunk.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.implementations.base import Implementation, OwnParameters, register
from leakypar import reference
from leakypar.measuring import THRESHOLD, Problem

# Time steps that are compiled together. A CPU is no faster with more, and a GPU has fewer kernels to launch.
CHUNK_STEPS = {"cpu": 16, "cuda": 64}


class CompiledLoopLayer(OwnParameters):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._chunk_steps = CHUNK_STEPS[problem.device.type]
        # At every compilation it would say that there is no Triton on a CPU, and that a chunk of x is not a leaf.
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        self._chunk = torch.compile(_chunk, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        parameters = (self.weight, self.decay, self.bias_ih, self.bias_hh)
        state = torch.promote_types(x.dtype, torch.float32)
        membrane = torch.zeros(x.shape[1], len(self.decay), dtype=state, device=x.device)
        chunks = []
        for chunk in torch.split(x, self._chunk_steps):
            spikes, membrane = self._chunk(chunk, *parameters, membrane)
            chunks.append(spikes)
        return torch.cat(chunks)


def _chunk(x: Tensor, weight: Tensor, decay: Tensor, bias_ih: Tensor, bias_hh: Tensor, membrane: Tensor) -> Any:
    return reference.leaky_parallel(
        x, weight, decay, bias_ih, bias_hh, THRESHOLD, initial_membrane=membrane, return_state=True
    )


@register()
class CompiledLoop(Implementation):
    name = "torch.compile"
    layer = CompiledLoopLayer

    def unavailable(self, device: torch.device) -> str | None:
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            return "torch.compile needs a C++ compiler"
        return None

    def note(self, problem: Problem) -> str:
        return f"a loop of {CHUNK_STEPS[problem.device.type]} steps compiled"
