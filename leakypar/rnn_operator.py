"""The kernel of `nn.RNN` as one operator, for what records a graph: torch.compile and torch.export.

Traced as it is, `torch.rnn_relu` becomes one copy of a step for each of the `T` steps: the graph grows with `T`, and is
made again for each new one. These two operators are opaque to a tracer. Eager calls do not use them, so that autograd
differentiates `torch.rnn_relu` itself there, twice if need be; the backward operator has no derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .dtypes import state_dtype
from .lengths import beyond


@torch.library.custom_op("leakypar::rnn", mutates_args=())
def rnn(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    initial_membrane: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The membrane at every step `[T, N, H]`, in the dtype of `x`, and after the last `[N, H]`, in the state dtype.

    Args:
        x: `[T, N, C]`; `T` and `N` may be 0.
        weight: `[H, C]`, and all that follow but the last, in the dtype of `x`.
        decay: `[H]`, or dense `[H, H]`.
        bias_ih: `[H]` or None.
        bias_hh: `[H]` or None.
        initial_membrane: `[N, H]` in the dtype of `x` or the state dtype, or None for zeros.
        lengths: int64 `[N]`, or None. What the membrane is beyond them is not defined.
    """
    T, N, _ = x.shape
    H = weight.shape[0]
    state = state_dtype(x.dtype)
    if T == 0 or N == 0:
        initial = x.new_zeros(N, H, dtype=state) if initial_membrane is None else initial_membrane.to(state, copy=True)
        return x.new_zeros(T, N, H), initial
    parameters = [
        weight,
        torch.diag_embed(decay) if decay.dim() == 1 else decay,
        weight.new_zeros(H) if bias_ih is None else bias_ih,
        weight.new_zeros(H) if bias_hh is None else bias_hh,
    ]
    initial = x.new_zeros(N, H) if initial_membrane is None else initial_membrane.to(x.dtype)
    membrane, final_membrane = relu_rnn(x, initial, parameters, lengths=lengths, records=False)
    return membrane, final_membrane.to(state, copy=True)


def relu_rnn(
    x: Tensor, initial: Tensor, parameters: list[Tensor], *, lengths: Tensor | None, records: bool
) -> tuple[Tensor, Tensor]:
    """`torch.rnn_relu`, which is what `nn.RNN` calls: cuDNN on CUDA, ATen elsewhere.

    Args:
        x: `[T, N, C]`, neither `T` nor `N` being 0.
        initial: `[N, H]`, and all others in the dtype of `x`.
        parameters: input weights `[H, C]`, recurrent weights `[H, H]`, and both biases `[H]`.
        lengths: int64 `[N]`, or None.
        records: whether a backward follows. cuDNN keeps what that needs only in training mode.

    Returns:
        The membrane `[T, N, H]` at every step, zero beyond the lengths, and after each sequence's last `[N, H]`.
    """
    if x.is_cuda:
        parameters = _in_one_buffer(parameters)
    # has_biases, num_layers, dropout, train, bidirectional
    settings = True, 1, 0.0, records, False
    if lengths is None:
        membrane, final_membrane = torch.rnn_relu(x, initial.unsqueeze(0).contiguous(), parameters, *settings, False)
        return membrane, final_membrane.squeeze(0)
    lengths = lengths.clamp(0, len(x))
    running = lengths.argsort(descending=True)[: int((lengths > 0).sum())]  # those with a step, longest first
    if len(running) == 0:
        return 0 * torch.nn.functional.linear(torch.zeros_like(x), parameters[0], parameters[2]), initial
    packed = pack_padded_sequence(x[:, running], lengths[running].cpu())
    first = initial[running].unsqueeze(0)
    data, last = torch.rnn_relu(packed.data, packed.batch_sizes, first, parameters, *settings)
    own, _ = pad_packed_sequence(PackedSequence(data, packed.batch_sizes), total_length=len(x))
    membrane = x.new_zeros(*x.shape[:2], initial.shape[1]).index_copy(1, running, own)
    return membrane, initial.index_copy(0, running, last.squeeze(0))


def _in_one_buffer(parameters: list[Tensor]) -> list[Tensor]:
    """Copies as views of one buffer, in cuDNN's order: weights before biases, input before recurrent.

    cuDNN reads its parameters from such a buffer. Given any other tensors, torch warns at every call and makes the copy
    itself.
    """
    buffer = torch.cat([parameter.reshape(-1) for parameter in parameters])
    parts = torch.split(buffer, [parameter.numel() for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]


@rnn.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    initial_membrane: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    T, N, _ = x.shape
    H = weight.shape[0]
    return x.new_empty(T, N, H), x.new_empty(N, H, dtype=state_dtype(x.dtype))


@torch.library.custom_op("leakypar::rnn_backward", mutates_args=())
def rnn_backward(
    grad_membrane: Tensor,
    grad_final_membrane: Tensor,
    membrane: Tensor,
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    initial_membrane: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""The gradients of x, weight, decay, either bias and the initial membrane, in this order.

    .. math:: d_t = 1[h_t > 0] (g_t + d_{t+1} W_{hh})

    is the gradient of the projection of step t, where :math:`g` is that of the membrane and the gradient of the final
    membrane is added to its last step. What follows are its products and sums.

    Args:
        grad_membrane: `[T, N, H]`.
        grad_final_membrane: `[N, H]`, in the state dtype.
        membrane: `[T, N, H]`, from the forward.
        x: as in the forward.
        weight: as in the forward.
        decay: as in the forward.
        initial_membrane: as in the forward.
        lengths: as in the forward.
    """
    T, N, H = membrane.shape
    over = None if lengths is None else beyond(lengths, T)
    if over is not None:
        x = x.masked_fill(over, 0)
    # What reaches h[t-1] from step t, at first what reaches the last step from outside.
    carried = grad_final_membrane.to(membrane.dtype, copy=True)
    d_u = torch.empty_like(membrane)
    for t in reversed(range(T)):
        torch.add(grad_membrane[t], carried, out=d_u[t])
        d_u[t].masked_fill_(membrane[t] <= 0, 0)
        earlier = d_u[t] * decay if decay.dim() == 1 else d_u[t] @ decay
        if over is not None:
            d_u[t].masked_fill_(over[t], 0)
            earlier = torch.where(over[t], carried, earlier)
        carried = earlier

    initial = membrane.new_zeros(N, H) if initial_membrane is None else initial_membrane.to(membrane.dtype)
    before = torch.cat([initial.unsqueeze(0), membrane[:-1]]) if T > 0 else membrane
    columns = d_u.reshape(T * N, H)
    if decay.dim() == 1:
        d_decay = (columns * before.reshape(T * N, H)).sum(0)
    else:
        d_decay = columns.t() @ before.reshape(T * N, H)
    return (
        (columns @ weight).reshape(x.shape),
        columns.t() @ x.reshape(T * N, x.shape[2]),
        d_decay,
        columns.sum(0),
        carried if initial_membrane is None else carried.to(initial_membrane.dtype),
    )


@rnn_backward.register_fake
def _(
    grad_membrane: Tensor,
    grad_final_membrane: Tensor,
    membrane: Tensor,
    x: Tensor,
    weight: Tensor,
    decay: Tensor,
    initial_membrane: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _, N, H = membrane.shape
    dtype = membrane.dtype if initial_membrane is None else initial_membrane.dtype
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        decay.new_empty(decay.shape),
        weight.new_empty(H),
        membrane.new_empty(N, H, dtype=dtype),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, decay, bias_ih, bias_hh, initial_membrane, lengths = inputs
    membrane, _ = output
    ctx.save_for_backward(membrane, x, weight, decay, initial_membrane, lengths)
    ctx.given = (bias_ih is not None, bias_hh is not None, initial_membrane is not None)


def _differentiate(ctx, grad_membrane, grad_final_membrane):  # type: ignore[no-untyped-def]
    membrane, x, weight, decay, initial_membrane, lengths = ctx.saved_tensors
    d_x, d_weight, d_decay, d_bias, d_initial = rnn_backward(
        grad_membrane, grad_final_membrane, membrane, x, weight, decay, initial_membrane, lengths
    )
    has_ih, has_hh, has_initial = ctx.given
    return (
        d_x,
        d_weight,
        d_decay,
        d_bias if has_ih else None,
        d_bias.clone() if has_hh else None,  # two parameters must not share one gradient
        d_initial if has_initial else None,
        None,
    )


rnn.register_autograd(_differentiate, setup_context=_setup_context)
