"""The registered operators, typed: availability, the launch plan, and the two calls with their shape-only versions.

`torch.ops.leakypar.forward` and `torch.ops.leakypar.backward` are implemented in `csrc/torch`, for the CPU and
for CUDA. They are not differentiable by themselves: `leakypar.leaky_parallel` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .build_info import build_info, extension
from .validation import state_dtype

Scan = Literal["lane", "split"]
Forward = Literal["lane", "split", "fused"]


class DeviceFacts(NamedTuple):
    """What a launch plan depends on.

    Attributes:
        multiprocessors: multiprocessors of the GPU; 0 stands for a CPU.
        cache_bytes: size of the last-level cache that the projection of one chunk should stay in, in bytes.
        shared_bytes_of_block: shared memory that one block may ask for, in bytes. Where this or a later fact is not
            known (0), the fused forward is not chosen.
        shared_bytes_of_multiprocessor: shared memory of one multiprocessor, in bytes.
        clock_khz: clock of the multiprocessors, in kilohertz.
        bytes_per_second: bandwidth of the memory.
        capability: compute capability, 90 for 9.0.
    """

    multiprocessors: int
    cache_bytes: int
    shared_bytes_of_block: int = 0
    shared_bytes_of_multiprocessor: int = 0
    clock_khz: int = 0
    bytes_per_second: int = 0
    capability: int = 0


class Tiles(NamedTuple):
    """The tiles of the fused forward, as `csrc/project.h` and `docs/kernels.md` describe them.

    Attributes:
        columns: columns of a tile, a column being one time step of one batch row: 64 or 128, beside 128 neurons.
        batch_rows: batch rows of a tile: 1, 2, 4 or 8. The rest of its columns is time.
        stages: slices of the input, of 128 bytes of `C`, in flight or in use: 1 to 4, at least 2 where there are more
            than one, and at most as many as there are.
        resident: whether the weights stay in shared memory from tile to tile.
        blocks_per_group: blocks that take turns at the tiles of one group of neurons and batch rows, at least 1; more
            than one split time, and pass the carries on by look-back.
    """

    columns: int
    batch_rows: int
    stages: int
    resident: bool
    blocks_per_group: int


class Plan(NamedTuple):
    """How a layer is laid on its device.

    Attributes:
        scan_forward: "fused" (projection, scan and spike in one kernel: float16, bfloat16, and float32 where TF32 is
            allowed), or the scan of a projection that the vendor's product makes: "lane" (a thread walks all of time)
            or "split" (time is split over blocks). The CPU has one scan and ignores the last two.
        scan_backward: "lane" or "split", for the backward scan.
        chunk_steps: time steps that the forward projects at a time, at least 1.
        backward_chunk_steps: time steps that the backward scans and multiplies at a time, at least 1.
        tiles: of the "fused" forward; None lets it choose them.

    Where training recomputes the membrane, both directions go by `recompute_steps` instead.
    """

    scan_forward: Forward
    scan_backward: Scan
    chunk_steps: int
    backward_chunk_steps: int
    tiles: Tiles | None = None


class Launch(NamedTuple):
    """A plan as the operators take it: "auto", 0 and no tiles leave a choice to them."""

    scan_forward: str = "auto"
    scan_backward: str = "auto"
    chunk_steps: int = 0
    backward_chunk_steps: int = 0
    tiles: tuple[int, ...] = ()


_AUTOMATIC = Launch()
# Found out once, at import: torch.compile can trace a look at a tuple, not a look at the file system.
_BUILT_FOR: tuple[str, ...] = {"cuda": ("cpu", "cuda"), "cpu": ("cpu",), "python": ()}[build_info().variant]
_library = torch.ops.leakypar


def is_available(device_type: str) -> bool:
    """Whether the fused kernels were built for a device type.

    Args:
        device_type: `torch.device.type`, such as "cpu" or "cuda".
    """
    return device_type in _BUILT_FOR


def _fuses_on(device_type: str) -> bool:
    return device_type == "cuda"


def unavailable_reason(device_type: str) -> str:
    """Why the fused kernels cannot run on a device type, and what would change that."""
    info = build_info()
    if device_type not in ("cpu", "cuda"):
        return f"leakypar has kernels for 'cpu' and 'cuda' devices, not for {device_type!r}"
    return (
        f"leakypar was built without {device_type} kernels ({info.reason}); "
        "reinstall it beside a compiler and the torch you use: pip install --no-build-isolation ."
    )


def launch(plan: Plan | Forward | None) -> Launch:
    """Turns the `plan` argument of the public calls into what the operators take.

    Raises:
        TypeError: `plan` is neither None, a string nor a `Plan`.
        ValueError: a scan is not "lane", "split" or, forward, "fused"; a number of steps is below 1; or tiles are not
            as `Tiles` says, or are given without the "fused" forward.
    """
    if plan is None:
        return _AUTOMATIC
    if isinstance(plan, str):
        chosen = Launch(plan) if plan == "fused" else Launch(plan, plan)
    elif isinstance(plan, Plan):
        for name in ("chunk_steps", "backward_chunk_steps"):
            if getattr(plan, name) < 1:
                raise ValueError(f"plan: {name} must be at least 1, got {getattr(plan, name)}")
        chosen = Launch(*plan[:4], _checked_tiles(plan))
    else:
        raise TypeError(f"plan must be None, 'lane', 'split', 'fused' or a leakypar.Plan, got {type(plan).__name__}")
    if chosen.scan_forward not in get_args(Forward):
        raise ValueError(f"plan: a forward scan must be 'lane', 'split' or 'fused', got {chosen.scan_forward!r}")
    if chosen.scan_backward not in (*get_args(Scan), _AUTOMATIC.scan_backward):
        raise ValueError(f"plan: a backward scan must be 'lane' or 'split', got {chosen.scan_backward!r}")
    return chosen


def _checked_tiles(plan: Plan) -> tuple[int, ...]:
    if plan.tiles is None:
        return ()
    if plan.scan_forward != "fused":
        raise ValueError(f"plan: tiles must be None unless scan_forward is 'fused', got {plan.scan_forward!r}")
    if not isinstance(plan.tiles, Tiles):
        raise TypeError(f"plan: tiles must be None or a leakypar.Tiles, got {type(plan.tiles).__name__}")
    tiles = plan.tiles
    for name, allowed in (("columns", (64, 128)), ("batch_rows", (1, 2, 4, 8)), ("stages", (1, 2, 3, 4))):
        if getattr(tiles, name) not in allowed:
            raise ValueError(f"plan: {name} of tiles must be one of {allowed}, got {getattr(tiles, name)}")
    if tiles.blocks_per_group < 1:
        raise ValueError(f"plan: blocks_per_group of tiles must be at least 1, got {tiles.blocks_per_group}")
    return tuple(map(int, tiles))


def plan(
    T: int,
    N: int,
    C: int,
    H: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | DeviceFacts = "cuda",
    tf32: bool | None = None,
) -> Plan:
    """The launch plan that the kernels choose for a problem. No device is needed to ask, given its facts.

    Args:
        T: time steps.
        N: batch.
        C: input features.
        H: neurons.
        dtype: compute dtype: float32, float64, float16 or bfloat16.
        device: a CUDA device present, "cpu", or the `DeviceFacts` of any device.
        tf32: whether a product of float32 may round its operands to TF32. As for the layer itself, PyTorch's switch for
            RNNs on CUDA devices (`torch.backends.cudnn.rnn.fp32_precision`) decides where it is not given.

    Returns:
        The plan of a forward that keeps no carries for a recomputing backward, in a form that the `plan` argument of
        the layer takes, to force it.

    Raises:
        ImportError: the extension was not built.
        TypeError: a size is not an integer, or `dtype` is not one of the four.
        ValueError: a size is negative, or leakypar has no kernels for `device`.
    """
    for name, size in (("T", T), ("N", N), ("C", C), ("H", H)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size < 0:
            raise ValueError(f"{name} must not be negative, got {size}")
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    compiled = extension()
    facts = device if isinstance(device, DeviceFacts) else _facts_of(torch.device(device))
    can_fuse = _fusible(dtype, _rnn_tf32() if tf32 is None else tf32)
    sizes = {"T": T, "N": N, "C": C, "H": H, "element_bytes": dtype.itemsize}
    chosen = Plan(*compiled.make_plan(**sizes, **facts._asdict(), can_fuse=can_fuse))
    return chosen if chosen.tiles is None else chosen._replace(tiles=Tiles(*chosen.tiles))


def _facts_of(device: torch.device) -> DeviceFacts:
    if device.type == "cpu":
        return DeviceFacts(*extension().device_facts(-1))
    if not is_available("cuda") or device.type != "cuda":
        raise ValueError(
            f"device must be a CUDA device, 'cpu' or DeviceFacts, got '{device}': {unavailable_reason(device.type)}"
        )
    return DeviceFacts(*extension().device_facts(torch.cuda.current_device() if device.index is None else device.index))


def _fusible(dtype: torch.dtype, allow_tf32: bool) -> bool:
    return dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and allow_tf32)


def recompute_steps(T: int, N: int, dtype: torch.dtype) -> int:
    """Time steps between the carries that training keeps where it recomputes the membrane, as in `csrc/plan.h`."""
    return max(32 if dtype.itemsize < 4 else 16, T // 64, 128 // max(N, 1))


def _rnn_tf32() -> bool:
    # The layer stands in for nn.RNN, so it follows the switch that nn.RNN follows.
    rnn: Any = torch.backends.cudnn.rnn  # its attributes are made at run time
    return bool(rnn.fp32_precision == "tf32")


def _allow_tf32(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype == torch.float32 and _rnn_tf32()


def _call(operator: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return operator(*arguments)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        if "CUDA out of memory" in str(error):
            torch.cuda.mem_get_info()  # raises what really happened where an earlier error has lost the device
        raise torch.OutOfMemoryError(str(error)) from None


def forward(
    x: Tensor,
    weight: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
    gain: Tensor,
    initial: Tensor | None,
    *,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    want_spikes: bool,
    want_membrane: bool,
    want_carries: bool,
    want_last: bool,
    launch: Launch = _AUTOMATIC,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projection, scan and spike.

    Args:
        x: `[T, N, C]`, any strides.
        weight: `[H, C]`, dtype of `x`.
        bias_ih: `[H]` or None.
        bias_hh: `[H]` or None.
        decay: `[H]`, any stride: the diagonal of the recurrent weight.
        threshold: `[H]`, or one value.
        gain: `[H]`, or one value: the height of a spike.
        initial: `[N, H]`, the membrane before the first step, or None for zeros.
        seed: one int64 on the device of `x`, which with its place decides whether an element drops out (Philox, see
            `csrc/math/dropout.h`); None for no dropout.
        dropout: probability of that, exact to 2^-25, for the membrane as the threshold sees it.
        want_spikes: return the spikes.
        want_membrane: return the membrane of every step.
        want_carries: return the membrane after every `recompute_steps` steps, the end excepted.
        want_last: return the membrane of the last step.
        launch: the plan to force.

    Raises:
        ValueError: the fused kernel is forced where there is none: on the CPU, in float64, in float32 without TF32; or
            with carries for a backward that recomputes the membrane, since that projects by the vendor's product.

    Returns:
        Spikes `[T, N, H]` and membrane `[T, N, H]` in the dtype of `x`, carries `[chunks - 1, N, H]` and last membrane
        `[N, H]` in the state dtype; an empty tensor for each that is not wanted.
    """
    allow_tf32 = _allow_tf32(x)
    if launch.scan_forward == "fused" and not (_fuses_on(x.device.type) and _fusible(x.dtype, allow_tf32)):
        raise ValueError(
            "plan: 'fused' is for float16, bfloat16 and, where TF32 is allowed, float32 on a CUDA device; "
            f"x is {x.dtype} on {x.device}, TF32 {'allowed' if allow_tf32 else 'not allowed'}"
        )
    if launch.scan_forward == "fused" and want_carries:
        raise ValueError("plan: 'fused' does not go with recompute=True, whose backward projects in chunks")
    outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _call(
        _library.forward.default,
        x,
        weight,
        bias_ih,
        bias_hh,
        decay,
        threshold,
        gain,
        initial,
        seed,
        dropout,
        want_spikes,
        want_membrane,
        want_carries,
        want_last,
        allow_tf32,
        launch.scan_forward,
        launch.chunk_steps,
        launch.tiles,
    )
    return outputs


def backward(
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_last: Tensor | None,
    membrane: Tensor | None,
    carries: Tensor | None,
    x: Tensor | None,
    weight: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    decay: Tensor,
    threshold: Tensor,
    gain: Tensor,
    initial: Tensor | None,
    surrogate: tuple[int, float, float],
    *,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
    want_decay: bool,
    want_threshold: bool,
    want_gain: bool,
    want_initial: bool,
    launch: Launch = _AUTOMATIC,
) -> tuple[Tensor, ...]:
    """The gradients of x, weight, either bias, decay, threshold, gain and initial; an empty tensor where not wanted.

    Args:
        grad_spikes: `[T, N, H]`, the gradient of the spikes, or None for zeros.
        grad_membrane: `[T, N, H]`, the gradient of the membrane of every step, or None for zeros.
        grad_last: `[N, H]`, the gradient of the last membrane, or None for zeros.
        membrane: `[T, N, H]` from `forward`, or None where it is recomputed from the carries.
        carries: `[chunks - 1, N, H]` from `forward`, or None where the membrane is given.
        x: `[T, N, C]`; None where neither the weight's gradient nor a recomputed membrane needs it.
        weight: `[H, C]`; None where neither the input's gradient nor a recomputed membrane needs it.
        bias_ih: as in `forward`, read where the membrane is recomputed.
        bias_hh: as in `forward`, read where the membrane is recomputed.
        decay: as in `forward`.
        threshold: as in `forward`.
        gain: as in `forward`.
        initial: as in `forward`.
        surrogate: kind and two parameters, numbered as in `csrc/math/surrogate.h`.
        seed: as in `forward`, and the same one.
        dropout: as in `forward`.
        want_x: return the input's gradient.
        want_weight: return the weight's.
        want_bias: return the gradient that both biases share.
        want_decay: return the decay's.
        want_threshold: return the threshold's.
        want_gain: return the gain's.
        want_initial: return the initial membrane's.
        launch: the plan to force.

    Returns:
        Seven tensors. Those of x and weight have their dtype, the rest the state dtype.
    """
    like = x if membrane is None else membrane
    assert like is not None  # one of the two is always given
    grads: tuple[Tensor, ...] = _call(
        _library.backward.default,
        grad_spikes,
        grad_membrane,
        grad_last,
        membrane,
        carries,
        x,
        weight,
        bias_ih,
        bias_hh,
        decay,
        threshold,
        gain,
        initial,
        seed,
        dropout,
        *surrogate,
        want_x,
        want_weight,
        want_bias,
        want_decay,
        want_threshold,
        want_gain,
        want_initial,
        _allow_tf32(like),
        launch.scan_backward,
        launch.backward_chunk_steps,
    )
    return grads


def register_shapes(namespace: str) -> None:
    """Registers the shape-only versions, by which torch.compile and meta tensors see the operators of a namespace."""

    def forward_shapes(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        want_spikes, want_membrane, want_carries, want_last = arguments[8:12]
        T, N = x.shape[:2]
        H = weight.shape[0]
        state = state_dtype(x.dtype)
        carries = max(-(-T // recompute_steps(T, N, x.dtype)) - 1, 0) if want_carries else 0
        return (
            x.new_empty((T, N, H) if want_spikes else 0),
            x.new_empty((T, N, H) if want_membrane else 0),
            x.new_empty((carries, N, H), dtype=state) if want_carries else x.new_empty(0),
            x.new_empty((N, H), dtype=state) if want_last else x.new_empty(0),
        )

    def backward_shapes(
        grad_spikes: Tensor | None,
        grad_membrane: Tensor | None,
        grad_last: Tensor | None,
        membrane: Tensor | None,
        carries: Tensor | None,
        x: Tensor | None,
        weight: Tensor | None,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        decay: Tensor,
        threshold: Tensor,
        gain: Tensor,
        *arguments: Any,
    ) -> tuple[Tensor, ...]:
        want_x, want_weight, want_bias, want_decay, want_threshold, want_gain, want_initial = arguments[6:13]
        like = x if membrane is None else membrane
        assert like is not None  # one of the two is always given
        T, N = like.shape[:2]
        H = weight.shape[0] if membrane is None and weight is not None else like.shape[2]
        state = state_dtype(like.dtype)

        def shaped(wanted: bool, *shape: Any) -> Tensor:
            return like.new_empty(shape, dtype=state) if wanted else like.new_empty(0)

        return (
            like.new_empty(T, N, weight.shape[1]) if want_x and weight is not None else like.new_empty(0),
            like.new_empty(H, x.shape[2]) if want_weight and x is not None else like.new_empty(0),
            shaped(want_bias, H),
            shaped(want_decay, *decay.shape),
            shaped(want_threshold, *threshold.shape),
            shaped(want_gain, *gain.shape),
            shaped(want_initial, N, H),
        )

    torch.library.register_fake(f"{namespace}::forward", forward_shapes)
    torch.library.register_fake(f"{namespace}::backward", backward_shapes)


if _BUILT_FOR:
    register_shapes("leakypar")
