r"""Parametrisations that keep a decay between 0 and 1 through training, for `torch.nn.utils.parametrize`.

They act on a decay of its own, so on a layer with `compact_decay=True`; the values it has stay as they are::

    layer = leakypar.LeakyParallel(128, 10, beta=0.9, learn_beta=True, compact_decay=True)
    parametrize.register_parametrization(layer.rnn, "decay_l0", leakypar.parametrizations.unit_interval())

What an optimizer then sees is `layer.rnn.parametrizations.decay_l0.original` `[H]`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .setting_checks import is_real

__all__ = ["time_constant", "unit_interval"]


class unit_interval(nn.Module):
    r"""A decay as the logistic function of what is trained: :math:`w = 1 / (1 + e^{-p})`.

    Raises:
        ValueError: where it is registered, if a decay is not strictly between 0 and 1.
    """

    def forward(self, p: Tensor) -> Tensor:
        """The decay `[H]` for the trained values `[H]`."""
        return torch.sigmoid(p)

    def right_inverse(self, decay: Tensor) -> Tensor:
        """The values to be trained, `[H]`, for a decay `[H]`."""
        return torch.logit(_between("unit_interval", decay))


class time_constant(nn.Module):
    r"""A decay by its time constant, which is trained: :math:`w = e^{-dt / \tau}`.

    A step of an optimizer that takes :math:`\tau` below `SHORTEST` steps makes a neuron without memory, of decay 0.

    Source: the exact solution of :math:`\tau \dot h = -h` over a step; snntorch's `StateLeaky` trains the same.

    Args:
        dt: length of a time step, in the unit of :math:`\tau`; by default that is steps.

    Raises:
        TypeError: `dt` is not a number.
        ValueError: `dt` is not positive and finite; or where it is registered, if a decay is not strictly between 0
            and 1.
    """

    SHORTEST: ClassVar[float] = 0.001  # e^-1000 is 0 in every dtype

    def __init__(self, dt: float = 1.0) -> None:
        super().__init__()
        if not is_real(dt):
            raise TypeError(f"time_constant: dt must be a number, got {type(dt).__name__}")
        if not 0 < float(dt) < float("inf"):
            raise ValueError(f"time_constant: dt must be positive and finite, got {dt}")
        self.dt = float(dt)

    def forward(self, tau: Tensor) -> Tensor:
        """The decay `[H]` for time constants `[H]`."""
        return torch.exp(-self.dt / tau.clamp(min=self.SHORTEST * self.dt))

    def right_inverse(self, decay: Tensor) -> Tensor:
        """The time constants `[H]` of a decay `[H]`."""
        return -self.dt / torch.log(_between("time_constant", decay))

    def extra_repr(self) -> str:
        """The length of a step."""
        return f"dt={self.dt:g}"


def _between(name: str, decay: Tensor) -> Tensor:
    if decay.dim() != 1:
        shape = list(decay.shape)
        raise ValueError(f"{name}: the decay must have shape [H], got {shape}: use a layer with compact_decay=True")
    outside = decay[~((decay > 0) & (decay < 1))]
    if outside.numel():
        raise ValueError(f"{name}: every decay must be strictly between 0 and 1, got {outside[0].item():g}")
    return decay
