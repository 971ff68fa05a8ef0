"""The launch plan: how the kernels lay a problem on a device, read before it runs, or forced.

The choice itself is made in `csrc/plan.h`, `csrc/project.h` and `csrc/cost.h`, which no device is needed to ask.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch

from .build_info import build_info, extension

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


AUTOMATIC = Launch()


def launch(plan: Plan | Forward | None) -> Launch:
    """Turns the `plan` argument of the public calls into what the operators take.

    Raises:
        TypeError: `plan` is neither None, a string nor a `Plan`.
        ValueError: a scan is not "lane", "split" or, forward, "fused"; a number of steps is below 1; or tiles are not
            as `Tiles` says, or are given without the "fused" forward.
    """
    if plan is None:
        return AUTOMATIC
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
    if chosen.scan_backward not in (*get_args(Scan), AUTOMATIC.scan_backward):
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
    can_fuse = fusible(dtype, rnn_tf32() if tf32 is None else tf32)
    sizes = {"T": T, "N": N, "C": C, "H": H, "element_bytes": dtype.itemsize}
    chosen = Plan(*compiled.make_plan(**sizes, **facts._asdict(), can_fuse=can_fuse))
    return chosen if chosen.tiles is None else chosen._replace(tiles=Tiles(*chosen.tiles))


def _facts_of(device: torch.device) -> DeviceFacts:
    if device.type == "cpu":
        return DeviceFacts(*extension().device_facts(-1))
    if device.type != "cuda":
        raise ValueError(f"device must be a CUDA device, 'cpu' or DeviceFacts, got '{device}'")
    if build_info().variant != "cuda":
        raise ValueError(f"device must be 'cpu' or DeviceFacts, got '{device}' without kernels: {build_info().reason}")
    return DeviceFacts(*extension().device_facts(torch.cuda.current_device() if device.index is None else device.index))


def fusible(dtype: torch.dtype, allow_tf32: bool) -> bool:
    """Whether there is a fused forward that computes in the precision of `dtype`: its float32 is TF32."""
    return dtype in (torch.float16, torch.bfloat16) or (dtype == torch.float32 and allow_tf32)


def recompute_steps(T: int, N: int, dtype: torch.dtype) -> int:
    """Time steps between the carries that training keeps where it recomputes the membrane, as in `csrc/plan.h`."""
    return max(32 if dtype.itemsize < 4 else 16, T // 64, 128 // max(N, 1))


def rnn_tf32() -> bool:
    """Whether float32 products may take TF32: the layer stands in for nn.RNN, and follows its switch."""
    rnn: Any = torch.backends.cudnn.rnn  # its attributes are made at run time
    return bool(rnn.fp32_precision == "tf32")
