"""The layer in ONNX: one `RNN` node, then a comparison.

A network is exported by either exporter of PyTorch as it is, on every backend, with `T` and `N` left open::

    network.eval()
    sizes = {0: torch.export.Dim("T", min=1), 1: torch.export.Dim("N", min=1)}
    torch.onnx.export(network, (x,), "network.onnx", dynamo=True, dynamic_shapes=(sizes,))

A program that `torch.export.export` made before has operators of this package, which the exporter must be told::

    program = torch.export.export(network, (x,), dynamic_shapes=(sizes,))
    torch.onnx.export(program, (), "network.onnx", custom_translation_table=leakypar.onnx.translation_table())

ONNX Runtime has the `RNN` node in float32. Of the bounds of the membrane it has `(0, b)`, `(-b, b)` and `(-inf, inf)`,
`b` a number or infinity, where `dynamo=True`. Dropout is not exported: call `network.eval()` first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops
from .dtypes import state_dtype
from .setting_checks import RECTIFIED, Bounds
from .torch_state import is_tracing

__all__ = ["translation_table"]


def in_export() -> bool:
    """Whether either exporter of `torch.onnx` is recording this call."""
    return (torch.compiler.is_compiling() or is_tracing()) and torch.onnx.is_in_onnx_export()


def attributes_of(bounds: Bounds) -> dict[str, Any]:
    """The attributes of ONNX's `RNN` that make its membrane one of these bounds.

    Its `clip` bounds what the activation sees on both sides alike, and relu has 0 below.

    Raises:
        ValueError: it has no such bounds.
    """
    lower, upper = bounds
    if lower not in (0, -upper):
        raise ValueError(
            f"leakypar.onnx: membrane_bounds must be (0, b), (-b, b) or (-inf, inf), which ONNX's RNN has, got {bounds}"
        )
    if is_tracing() and bounds != RECTIFIED:
        raise ValueError(
            f"leakypar.onnx: membrane_bounds must be (0, inf) for the exporter that traces, got {bounds}: dynamo=True"
        )
    # Affine is x -> alpha x + beta.
    named: dict[str, Any] = {"activations": ["Relu"]}
    if lower != 0:
        named = {"activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.0]}
    return named if math.isinf(upper) else {**named, "clip": upper}


def check_lengths(lengths: object) -> None:
    """Raises ValueError for sequences of different lengths."""
    if lengths is not None:
        raise ValueError("leakypar.onnx: lengths must be None: sequences of different lengths are not exported")


def diagonal_matrix(values: Tensor) -> Tensor:
    """`[H, H]` with the diagonal of a matrix `[H, H]`, or with the values of a vector `[H]`, in ONNX's operators."""
    neurons = torch.arange(values.shape[-1], device=values.device)
    return torch.where(
        neurons.unsqueeze(1) == neurons, values, torch.zeros((), dtype=values.dtype, device=values.device)
    )


def rnn(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    initial_membrane: Tensor | None,
    lengths: Tensor | None = None,
    bounds: Bounds = RECTIFIED,
) -> tuple[Tensor, Tensor]:
    """What `torch.ops.leakypar.rnn` returns, as the ONNX node, for the exporter that `torch.export` feeds.

    Args:
        x: as there, and all that follow but the last.
        weight: see there.
        decay: see there.
        bias_ih: see there.
        bias_hh: see there.
        initial_membrane: see there.
        lengths: None.
        bounds: of the membrane.
    """
    check_lengths(lengths)
    T, N, _ = x.shape
    H = weight.shape[0]
    recurrent = diagonal_matrix(decay) if decay.dim() == 1 else decay
    biases = None
    if bias_ih is not None or bias_hh is not None:
        none = weight.new_zeros(H)
        biases = torch.cat([none if bias is None else bias for bias in (bias_ih, bias_hh)]).unsqueeze(0)
    initial = None if initial_membrane is None else initial_membrane.to(x.dtype).unsqueeze(0)
    membrane, final_membrane = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        (x, weight.unsqueeze(0), recurrent.unsqueeze(0), biases, None, initial),
        {"hidden_size": H, **attributes_of(bounds)},
        dtypes=(x.dtype, x.dtype),
        shapes=((T, 1, N, H), (1, N, H)),
    )
    return membrane.squeeze(1), final_membrane.squeeze(0).to(state_dtype(x.dtype))


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operators of this package in ONNX's, for the argument `custom_translation_table` of `torch.onnx.export`.

    Raises:
        ImportError: the package `onnxscript` is not installed (the extra `onnx`).
    """
    import numpy
    import onnxscript

    op: Any = onnxscript.opset18
    onnx_types = {torch.float16: 10, torch.bfloat16: 16, torch.float32: 1, torch.float64: 11}  # of onnx.TensorProto

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return op.Cast(value, to=onnx_types[dtype])

    def nothing() -> Any:
        return op.Constant(value_floats=[])

    def row(value: Any) -> Any:
        return op.Reshape(value, op.Constant(value_ints=[-1]))

    def membranes(
        x: Any,
        weight: Any,
        decay: Any,
        bias_ih: Any,
        bias_hh: Any,
        initial_membrane: Any,
        bounds: Bounds = RECTIFIED,
    ) -> tuple[Any, Any, torch.dtype]:
        """The membrane `[T, N, H]` and the final one `[1, N, H]`, in the dtype of `x`, which comes third."""
        if weight.shape is None:
            raise ValueError(
                "leakypar.onnx: the shape of a weight that is computed is not known to this exporter: give "
                "torch.onnx.export the network itself"
            )
        H = weight.shape[0]
        dtype = x.dtype if isinstance(x.dtype, torch.dtype) else _torch_type(x.dtype)
        first = op.Constant(value_ints=[0])
        # This exporter does not know the rank of a computed decay: [H], which each row then repeats, or [H, H].
        eye = op.Constant(value=onnxscript.ir.tensor(numpy.eye(H, dtype=bool)))
        dense = op.Equal(op.Size(op.Shape(decay)), op.Constant(value_int=2))
        recurrent = op.Where(op.Or(eye, dense), decay, cast(op.Constant(value_float=0.0), dtype))
        biases = None
        if bias_ih is not None or bias_hh is not None:
            none = cast(op.Constant(value_floats=[0.0] * H), dtype)
            biases = [none if bias is None else bias for bias in (bias_ih, bias_hh)]
            biases = op.Unsqueeze(op.Concat(*biases, axis=0), first)
        initial = None if initial_membrane is None else op.Unsqueeze(cast(initial_membrane, dtype), first)
        membrane, final_membrane = op.RNN(
            x,
            op.Unsqueeze(weight, first),
            op.Unsqueeze(recurrent, first),
            biases,
            None,
            initial,
            hidden_size=H,
            **attributes_of(bounds),
        )
        return op.Squeeze(membrane, op.Constant(value_ints=[1])), final_membrane, dtype

    def rnn(
        x: Any, weight: Any, decay: Any, bias_ih: Any, bias_hh: Any, initial_membrane: Any, lengths: Any = None
    ) -> tuple[Any, ...]:
        check_lengths(lengths)
        membrane, final_membrane, dtype = membranes(x, weight, decay, bias_ih, bias_hh, initial_membrane)
        return membrane, cast(op.Squeeze(final_membrane, op.Constant(value_ints=[0])), state_dtype(dtype))

    def forward(
        x: Any,
        weight: Any,
        decay: Any,
        bias_ih: Any,
        bias_hh: Any,
        threshold: Any,
        gain: Any,
        initial_membrane: Any,
        lengths: Any,
        seed: Any,
        lower: float | None,
        upper: float | None,
        dropout: float,
        outputs: int,
        *plan: Any,
    ) -> tuple[Any, ...]:
        check_lengths(lengths)
        bounds = -math.inf if lower is None else lower, math.inf if upper is None else upper
        if seed is not None:
            raise ValueError("leakypar.onnx has no dropout: export after network.eval()")
        if outputs & ops.CHECKPOINTS:
            raise ValueError("leakypar.onnx has no checkpoints of a recomputed membrane: export under torch.no_grad()")
        membrane, final_membrane, dtype = membranes(
            x, weight, cast_like(decay, x), bias_ih, bias_hh, initial_membrane, bounds
        )
        state = state_dtype(dtype)
        above = op.Greater(cast(membrane, state), cast(row(threshold), state))
        spikes = cast(op.Mul(cast(above, state), cast(row(gain), state)), dtype)
        final_membrane = cast(op.Squeeze(final_membrane, op.Constant(value_ints=[0])), state)
        return spikes, membrane, nothing(), final_membrane

    def cast_like(value: Any, like: Any) -> Any:
        return op.CastLike(value, like)

    def layer(*arguments: Any) -> tuple[Any, ...]:
        return forward(*arguments[:13], *arguments[16:])

    table: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.leakypar.rnn.default: rnn}
    if ops.is_available("cpu"):
        table |= {torch.ops.leakypar.forward.default: forward, torch.ops.leakypar.layer.default: layer}
    return table


def _torch_type(dtype: Any) -> torch.dtype:
    """An onnx_ir data type as torch's."""
    found: torch.dtype = getattr(torch, str(dtype.numpy()))
    return found
