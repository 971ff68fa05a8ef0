"""Every implementation of the layer, behind one signature: that of `leakypar.reference.leaky_parallel`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import leakypar
from leakypar import ops, spikes_of_membrane
from leakypar.reference import leaky_parallel as reference

from .emulation.build import build, tool

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Implementation:
    """One way to compute the layer.

    Attributes:
        name: what the tests call it.
        device: where its tensors lie.
        rounds_state: whether the membrane is rounded to the compute dtype between steps, as nn.RNN does.
        run: spikes, membrane and final membrane of a problem's arguments.
        recomputes: whether training keeps checkpoints, and its backward rebuilds the membrane.
    """

    name: str
    device: str
    rounds_state: bool
    run: Callable[..., Outputs]
    recomputes: bool = False

    def __str__(self) -> str:
        return self.name


def run_reference(**arguments: Any) -> Outputs:
    return reference(**arguments, return_membrane=True, return_state=True)


def run_rnn(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    threshold: Tensor,
    gain: Tensor,
    **options: Any,
) -> Outputs:
    """The module on its nn.RNN backend, its parameters replaced by the problem's."""
    H, C = weight.shape
    state = {name: options.pop(name, None) for name in ("initial_membrane", "lengths")}
    layer = leakypar.LeakyParallel(C, H, bias=bias_ih is not None, backend="rnn", dtype=x.dtype, **options)
    parameters = {
        "rnn.weight_ih_l0": weight,
        "rnn.weight_hh_l0": torch.diag_embed(decay),
        "threshold": threshold,
        "graded_spikes_factor": gain,
    }
    if bias_ih is not None:
        zeros = torch.zeros_like(bias_ih)
        parameters |= {"rnn.bias_ih_l0": bias_ih, "rnn.bias_hh_l0": zeros if bias_hh is None else bias_hh}
    call = {**state, "return_membrane": True, "return_state": True}
    return torch.func.functional_call(layer, parameters, (x,), call)


def fused(name: str, device: str, plan: str | None, recompute: bool = False) -> Implementation:
    def run(**arguments: Any) -> Outputs:
        # project_scan has no strict float32 and no float64: there the plan is the one that is chosen.
        has_kernel = plan != "project_scan" or arguments["x"].dtype in (torch.float16, torch.bfloat16)
        options = {
            "plan": plan if has_kernel else None,
            "recompute": recompute,
            "return_membrane": True,
            "return_state": True,
        }
        # The membrane is returned to be looked at. The gradient of the spikes beside it is to be the kernel's own.
        with patch.object(spikes_of_membrane._SpikesOfMembrane, "apply", lambda spikes, *_: spikes):
            return leakypar.leaky_parallel(**arguments, **options)

    return Implementation(f"{name}-recompute" if recompute else name, device, False, run, recompute)


@cache
def emulated_library() -> Path:
    """The CUDA kernels as C++ for the CPU, built on first use.

    LEAKYPAR_EMULATION_SANITIZE=address,undefined builds them under sanitizers, whose runtime must then be preloaded.
    """
    return build(os.environ.get("LEAKYPAR_EMULATION_SANITIZE"))


@cache
def load_emulated() -> Any:
    """The operators over the emulated kernels."""
    torch.ops.load_library(emulated_library())
    ops.register_shapes("leakypar_emulated")
    return torch.ops.leakypar_emulated


def unavailable(implementation: Implementation) -> str | None:
    """Why an implementation cannot run here, or None where it can."""
    if implementation in CUDA and not torch.cuda.is_available():
        return "no CUDA device"
    if implementation in EMULATED and tool("cmake") is None:
        return "cmake, which builds the emulated kernels, is not installed"
    if implementation not in [RNN, *EMULATED] and not ops.is_available(implementation.device):
        return ops.unavailable_reason(implementation.device)
    return None


@contextmanager
def emulation() -> Iterator[None]:
    """Within it, forward and backward, the package's operators on CPU tensors are the emulated CUDA kernels."""
    saved = ops._library, ops.is_available
    ops._library, ops.is_available = load_emulated(), lambda device_type: device_type == "cpu"
    try:
        yield
    finally:
        ops._library, ops.is_available = saved


RNN = Implementation("rnn", "cpu", True, run_rnn)
CPU = fused("cpu", "cpu", None)
METHODS = [("sequential", False), ("look_back", False), ("look_back", True), ("project_scan", False)]
EMULATED = [fused(f"emulated-{method}", "cpu", method, recompute) for method, recompute in METHODS]
CUDA = [fused(f"cuda-{method}", "cuda", method, recompute) for method, recompute in METHODS]
FUSED = [CPU, fused("cpu", "cpu", None, recompute=True), *EMULATED, *CUDA]
EVERY = [RNN, *FUSED]
