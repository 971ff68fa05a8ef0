r"""Networks of this layer in NIR, the exchange format of neuromorphic tools, and back; the extra `nir`.

A layer becomes `Affine` (or `Linear`), `LI` and `Threshold`, and `Scale` where a spike is not 1. NIR's leaky integrator
is continuous, :math:`\tau \dot v = (v_{leak} - v) + r I`; its readers take Euler steps of length `dt`, so that

.. math:: v_t = (1 - dt / \tau) v_{t-1} + (dt / \tau) r I_t

is this layer's membrane with :math:`\tau = dt / (1 - w)` and :math:`r = \tau / dt`, as long as that stays between its
bounds, above zero if nothing else is said: NIR has no node that clips it there. `nir.write` and `nir.read` keep the
graph in a file.

Source: Pedersen et al. (2024), Neuromorphic intermediate representation: a unified instruction set for interoperable
brain-inspired computing.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .module import LeakyParallel

__all__ = ["from_nir", "to_nir"]


def to_nir(network: nn.Module, *, dt: float = 1e-4) -> Any:
    """A layer, or an `nn.Sequential` of layers, as a `nir.NIRGraph`. It warns where a membrane has bounds.

    Args:
        network: a `LeakyParallel`, or an `nn.Sequential` of them. Its dropout and surrogates are not kept.
        dt: length of a time step, in seconds.

    Raises:
        ImportError: the package `nir` is not installed (the extra `nir`).
        TypeError: a module is not a `LeakyParallel`.
        ValueError: a layer has `weight_hh_enable=True`, or a decay of 1 or more, which no leak has.
    """
    import nir

    layers: list[Any] = list(network) if isinstance(network, nn.Sequential) else [network]
    nodes: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        if not isinstance(layer, LeakyParallel):
            raise TypeError(f"network must be made of LeakyParallel layers, got {type(layer).__name__} at {i}")
        if layer.weight_hh_enable:
            raise ValueError(f"network: layer {i} has weight_hh_enable=True, and NIR's LI has no recurrent weights")
        weight, _, bias_ih, bias_hh = (_numpy(each) for each in layer.rnn())
        H = len(weight)
        decay = _numpy(layer.rnn.decay())
        if (decay >= 1).any():
            raise ValueError(f"network: every decay must be below 1 for NIR, got {decay.max()} in layer {i}")
        bias = None if bias_ih is None else bias_ih + bias_hh
        nodes[f"{i}.weight"] = nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
        tau = dt / (1 - decay)
        nodes[f"{i}.membrane"] = nir.LI(tau=tau, r=tau / dt, v_leak=0 * tau, metadata={"dt": dt})
        nodes[f"{i}.spike"] = nir.Threshold(_numpy(layer.threshold.expand(H)))
        gain = _numpy(layer.graded_spikes_factor.expand(H))
        if (gain != 1).any():
            nodes[f"{i}.height"] = nir.Scale(gain)
    if any(layer.membrane_bounds != (-math.inf, math.inf) for layer in layers):
        warnings.warn(
            "leakypar.nir: NIR has no node that keeps a membrane between bounds, above zero for example: other tools "
            "will compute other spikes wherever it reaches one",
            stacklevel=2,
        )
    C, H = layers[0].input_size, layers[-1].hidden_size
    nodes = {
        "input": nir.Input({"input": torch.Size([C])}),
        **nodes,
        "output": nir.Output({"output": torch.Size([H])}),
    }
    return nir.NIRGraph(nodes, list(pairwise(nodes)))


def from_nir(graph: Any, **options: Any) -> nn.Sequential:
    """The network of a graph that is a chain of `Affine` or `Linear`, `LI`, `Threshold` and perhaps `Scale`.

    Args:
        graph: a `nir.NIRGraph`. `LI` keeps its time step in `metadata`, and is taken to have one of 0.1 ms otherwise.
        options: of every `LeakyParallel`, such as `backend`. NIR's membrane is that of
            `membrane_bounds=(-math.inf, math.inf)`.

    Raises:
        ImportError: the package `nir` is not installed (the extra `nir`).
        ValueError: the graph is not such a chain, or its leak is not to 0.
    """
    import nir

    following = dict(graph.edges)
    if len(following) != len(graph.edges) or len(following) != len(graph.nodes) - 1:
        raise ValueError("graph must be a chain of nodes, each with one successor")
    chain = []
    name = next(name for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    while name in following:
        name = following[name]
        chain.append(graph.nodes[name])
    layers = []
    while chain and not isinstance(chain[0], nir.Output):
        projection, membrane, spike, *chain = chain
        kinds = [type(node).__name__ for node in (projection, membrane, spike)]
        if kinds not in (["Affine", "LI", "Threshold"], ["Linear", "LI", "Threshold"]):
            raise ValueError(
                f"graph must repeat Affine or Linear, LI, Threshold, perhaps Scale, got {', '.join(kinds)}"
            )
        if membrane.v_leak.any():
            raise ValueError("graph: the v_leak of an LI must be 0")
        gain: Any = 1.0
        if chain and isinstance(chain[0], nir.Scale):
            gain = torch.as_tensor(chain.pop(0).scale)
        layers.append(_layer(projection, membrane, torch.as_tensor(spike.threshold), gain, options))
    return nn.Sequential(*layers)


def _layer(projection: Any, membrane: Any, threshold: Tensor, gain: Any, options: dict[str, Any]) -> LeakyParallel:
    weight = torch.as_tensor(projection.weight)
    step = torch.as_tensor(membrane.metadata.get("dt", 1e-4) / membrane.tau)
    H, C = weight.shape
    bias = getattr(projection, "bias", None)
    given: dict[str, Any] = {"bias": bias is not None, "dtype": weight.dtype} | options
    layer = LeakyParallel(C, H, threshold=threshold, graded_spikes_factor=gain, **given)
    scale = step * torch.as_tensor(membrane.r)  # what a unit of input adds to the membrane
    with torch.no_grad():
        layer.rnn.weight_ih_l0.copy_(scale.unsqueeze(1) * weight)
        layer.rnn.set_decay(1 - step)
        if layer.rnn.bias_ih_l0 is not None and layer.rnn.bias_hh_l0 is not None:
            layer.rnn.bias_ih_l0.copy_(scale * torch.as_tensor(bias))
            layer.rnn.bias_hh_l0.zero_()
    return layer


def _numpy(value: Tensor | None) -> Any:
    return None if value is None else value.detach().cpu().numpy()
