"""How many floating-point operations the operators take, for `torch.utils.flop_counter.FlopCounterMode`.

As for PyTorch's own operators, products are counted, a multiplication and an addition each, and nothing else: a product
of the input and the weights is `2 T N C H`. The scan's few operations an element are not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import rnn_operator  # noqa: F401 - it defines two of the operators
from .ops import GRADIENTS, is_available

Shape = tuple[int, ...]


def _project(x: Shape, weight: Shape, *_: Any, out_shape: Any = None) -> int:
    T, N, C = x
    return 2 * T * N * C * weight[0]


def _differentiate(
    grad_spikes: Shape | None,
    grad_membrane: Shape | None,
    grad_final_membrane: Shape | None,
    membrane: Shape | None,
    checkpoints: Shape | None,
    event_bits: Shape | None,
    event_value: Shape | None,
    x: Shape | None,
    weight: Shape | None,
    *others: Any,
    out_shape: Any = None,
) -> int:
    """The products of the input's and the weight's gradients, and the projection again where it is recomputed."""
    outputs: int = others[14]  # after eight tensors, the bounds, the dropout and the surrogate
    products = (outputs >> GRADIENTS.index("x") & 1) + (outputs >> GRADIENTS.index("weight") & 1) + (membrane is None)
    if not products:
        return 0
    like = next(each for each in (membrane, x, event_bits) if each is not None)
    T, N = like[:2]
    if weight is not None:
        H, C = weight
    else:
        assert membrane is not None
        H, C = membrane[2], others[-1] if x is None else x[2]
    return products * 2 * T * N * C * H


def _run_rnn(x: Shape, weight: Shape, *_: Any, out_shape: Any = None) -> int:
    """The input's product, and the recurrent one, which `nn.RNN` takes over the whole matrix, diagonal or not."""
    T, N, C = x
    H = weight[0]
    return 2 * T * N * H * (C + H)


def _differentiate_rnn(
    grad_membrane: Shape,
    grad_final_membrane: Shape,
    membrane: Shape,
    x: Shape,
    weight: Shape,
    decay: Shape,
    *_: Any,
    out_shape: Any = None,
) -> int:
    """Two products of the input's, and two more with a dense recurrent matrix."""
    T, N, C = x
    H = weight[0]
    return 4 * T * N * H * (C + H * (len(decay) == 2))


register_flop_formula(torch.ops.leakypar.rnn)(_run_rnn)
register_flop_formula(torch.ops.leakypar.rnn_backward)(_differentiate_rnn)
if is_available("cpu"):
    register_flop_formula([torch.ops.leakypar.forward, torch.ops.leakypar.layer])(_project)
    register_flop_formula(torch.ops.leakypar.backward)(_differentiate)
