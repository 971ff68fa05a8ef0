"""The dtypes that a layer computes in, and that of its membranes."""

from __future__ import annotations

import torch

COMPUTE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPE_NAMES = ", ".join(str(dtype) for dtype in COMPUTE_DTYPES)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which membranes are carried and gradients summed: float64 for float64, float32 for the others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
