"""The dropout factors that the kernels derive from a seed, by an independent Philox4x32-10 in numpy."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds (Salmon et al. 2011) of counters [..., 4] under a key, 32 bits to a word."""
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0)
    k0, k1 = key
    for _ in range(10):
        even, odd = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (odd >> HALF) ^ c1 ^ np.uint64(k0), odd & LOW, (even >> HALF) ^ c3 ^ np.uint64(k1), even & LOW
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], axis=-1)


def factors_of(seed: int, shape: tuple[int, ...], p: float) -> Tensor:
    """Factors in float64: element e has word e mod 4 of counter e / 4."""
    count = math.prod(shape)
    index = np.arange(-(-count // 4), dtype=np.uint64)
    counter = np.stack([index & LOW, index >> HALF, 0 * index, 0 * index], axis=-1)
    words = philox(counter, (seed % 2**32, seed >> 32)).reshape(-1)[:count]
    kept = (words >> np.uint64(8)) >= round(p * 2**24)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.from_numpy(kept.reshape(shape)) * torch.tensor(scale, dtype=torch.float64)


def next_factors(shape: tuple[int, ...], p: float, device: str = "cpu") -> Tensor:
    """The factors of the layer call that comes next: takes from torch's generator what that call will take."""
    return factors_of(int(torch.randint(2**63 - 1, (), device=device)), shape, p).to(device)
