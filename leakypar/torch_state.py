"""What torch is doing at the moment: casting by autocast, exporting, tracing."""

from __future__ import annotations

import torch


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a device type; False for those that have none, such as `"meta"`."""
    if device_type == "cpu" or device_type == "cuda":
        return torch.is_autocast_enabled(device_type)
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile of torch 2.11 cannot trace it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def is_exporting() -> bool:
    """Whether torch.export is at work. `torch.compiler.is_exporting` of torch 2.11 says so of torch.compile too."""
    exporting: bool = torch.compiler._is_exporting_flag
    return exporting


def is_tracing() -> bool:
    """Whether torch.jit is tracing this call, as the older exporter of `torch.onnx` does."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing
