"""What rounding takes from a layer's neurons: a decay of 0.999 is 1 in bfloat16, and such a neuron forgets nothing."""

from __future__ import annotations

import warnings

from torch import Tensor

SHARE = 0.1
"""Of what a neuron leaks in a step, or of its threshold or gain: losing more is warned about."""


def warn_of_losses(exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> None:
    """Warns once of all that lost more than `SHARE` where it changed its dtype.

    Args:
        exact: values by their names; of `"decay"` it is 1 - |decay| that counts, of the others the value itself.
        rounded: the same, as they are held now; those that cannot be read are not there.
    """
    losses = []
    for name, before in exact.items():
        after = rounded.get(name)
        if after is None or after.dtype == before.dtype or after.is_meta or before.is_meta:
            continue
        given, held = (value.detach().double().cpu() for value in (before, after))
        if name == "decay":
            lost = ((1 - held.abs()) - (1 - given.abs())).abs() > SHARE * (1 - given.abs()).abs()
        else:
            lost = ~((held - given).abs() <= SHARE * given.abs())
        if bool(lost.any()):
            i = int(lost.flatten().int().argmax())
            losses.append(f"{name} {given.flatten()[i].item():.6g} becomes {held.flatten()[i].item():.6g}")
    if losses:
        dtype = next(iter(rounded.values())).dtype
        warnings.warn(
            f"leakypar: {', '.join(losses)} in {dtype}: the neurons are no longer those that were given. A decay, a "
            "threshold or a gain may stay in float32 in a 16-bit layer: docs/layer.md shows how",
            stacklevel=2,
        )
