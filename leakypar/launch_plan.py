"""The plan: how the kernels lay a problem on a device, read before it runs, or forced.

It is chosen, and what a user forces of it is checked, in `csrc/plan/plan.h`, which no device is needed to ask.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch

from .build_info import build_info, extension

Scan = Literal["sequential", "look_back"]
Method = Literal["sequential", "look_back", "project_scan"]
Choice = Literal["sequential", "look_back", "project_scan", "events"]


class DeviceFacts(NamedTuple):
    """What a launch plan depends on.

    Attributes:
        multiprocessors: multiprocessors of the GPU; 0 stands for a CPU.
        cache_bytes: size of the last-level cache that the projection of one chunk should stay in, in bytes.
        shared_bytes_of_block: shared memory that one block may ask for, in bytes. Where this or a later fact is not
            known (0), `project_scan` is not chosen.
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
    """The tiles of `project_scan`, as `csrc/plan/project.h` and `docs/kernels.md` describe them.

    Attributes:
        columns: columns of a tile, a column being one time step of one batch row: 64 or 128, beside 128 neurons.
        batch_rows: batch rows of a tile: 1, 2, 4 or 8. The rest of its columns is time.
        stages: slices of the input, of 128 bytes of `C`, in flight or in use: 1 to 4, at least 2 where there are more
            than one, and at most as many as there are.
        weights_resident: whether the weights stay in shared memory from tile to tile.
        time_blocks: blocks that take turns at the tiles of the same neurons and batch rows, at least 1; more than one
            split time, and pass the carries on by look-back.
    """

    columns: int
    batch_rows: int
    stages: int
    weights_resident: bool
    time_blocks: int


class Plan(NamedTuple):
    """How a layer is laid on its device.

    Attributes:
        forward: `"project_scan"` (projection, scan and spike in one kernel: float16, bfloat16, and float32 where TF32
            is allowed), or the scan of a projection that the vendor's product makes: `"sequential"` (a thread walks all
            of time) or `"look_back"` (time is split over blocks). The CPU has one scan and ignores the last two.
        backward: `"sequential"` or `"look_back"`, for the backward scan.
        gemm_chunk: time steps that the forward projects at a time, at least 1.
        backward_gemm_chunk: time steps that the backward scans and multiplies at a time, at least 1.
        tiles: of `"project_scan"`; None lets it choose them.
        event_rate: the share of ones, from 0 to 1, up to which a CPU projects an input of zeros and one other value by
            additions alone; 0 looks for none. It goes by the chunk, of `gemm_chunk` steps. None lets sizes decide.
        backward_event_rate: likewise, for the gradient of the weights and `backward_gemm_chunk`.

    Where training recomputes the membrane, both directions go by `checkpoint_interval` instead.
    """

    forward: Method
    backward: Scan
    gemm_chunk: int
    backward_gemm_chunk: int
    tiles: Tiles | None = None
    event_rate: float | None = None
    backward_event_rate: float | None = None


class Request(NamedTuple):
    """What a user forces of a plan, as the operators take it; None leaves a choice to them."""

    forward: str | None = None
    backward: str | None = None
    gemm_chunk: int | None = None
    backward_gemm_chunk: int | None = None
    tiles: tuple[int, ...] | None = None
    event_rate: float | None = None
    backward_event_rate: float | None = None


AUTOMATIC = Request()


def request(plan: Plan | Choice | None, *, recompute: bool = False, binary_input: bool | None = None) -> Request:
    """Turns the `plan` argument of the public calls into what the operators take.

    Args:
        plan: the argument.
        recompute: whether training rebuilds the membrane in the backward.
        binary_input: False for a call that does not look for events.

    Raises:
        TypeError: `plan` is neither None, a string nor a `Plan`, or its tiles are no `Tiles`.
        ValueError: a value is not one that `Plan` or `Tiles` allows, or tiles are given without `"project_scan"`, or
            that with `recompute`, or `"events"` with `binary_input=False`. Where the extension was not built, names
            alone are checked.
    """
    if plan is None:
        return AUTOMATIC if binary_input is not False else AUTOMATIC._replace(event_rate=0.0, backward_event_rate=0.0)
    if isinstance(plan, str):
        asked = Request(plan) if plan == "project_scan" else Request(plan, plan)
        if plan == "events":
            asked = Request(event_rate=1.0, backward_event_rate=1.0)
    elif isinstance(plan, Plan):
        if plan.tiles is not None and not isinstance(plan.tiles, Tiles):
            raise TypeError(f"plan: tiles must be None or a leakypar.Tiles, got {type(plan.tiles).__name__}")
        asked = Request(*plan)._replace(tiles=None if plan.tiles is None else tuple(map(int, plan.tiles)))
    else:
        raise TypeError(
            "plan must be None, 'sequential', 'look_back', 'project_scan', 'events' or a leakypar.Plan, "
            f"got {type(plan).__name__}"
        )
    if binary_input is False:
        if plan == "events":
            raise ValueError("plan must not be 'events' with binary_input=False, which looks for none")
        asked = asked._replace(event_rate=0.0, backward_event_rate=0.0)
    if build_info().variant != "python":
        extension().check_request(*asked)
    elif asked.forward not in get_args(Method) or asked.backward not in (None, *get_args(Scan)):
        raise ValueError(
            f"plan: a method must be one of {get_args(Method)}, backward of {get_args(Scan)}, got {plan!r}"
        )
    if recompute and asked.forward == "project_scan":
        raise ValueError("plan: 'project_scan' does not go with recompute=True, whose backward projects in chunks")
    return asked


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
    """The plan that the kernels choose, or that `leakypar.tune` found. No device is needed to ask, given its facts.

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
        The plan of a training that keeps the membrane, in a form that the `plan` argument of
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
    facts = device if isinstance(device, DeviceFacts) else facts_of(torch.device(device))
    rounds = dtype == torch.float32 and facts.multiprocessors and (rnn_tf32() if tf32 is None else tf32)
    precision = "tf32" if rounds else str(dtype)[6:]
    return with_tiles(Plan(*compiled.make_plan(T=T, N=N, C=C, H=H, precision=precision, facts=facts)))


def with_tiles(plan: Plan) -> Plan:
    """What the extension gives, its tiles being a bare tuple there."""
    return plan if plan.tiles is None else plan._replace(tiles=Tiles(*plan.tiles))


def facts_of(device: torch.device) -> DeviceFacts:
    """What a plan depends on of a device that is present.

    Raises:
        ValueError: leakypar has no kernels for it.
    """
    if device.type == "cpu":
        return DeviceFacts(*extension().device_facts(-1))
    if device.type != "cuda":
        raise ValueError(f"device must be a CUDA device, 'cpu' or DeviceFacts, got '{device}'")
    if build_info().variant != "cuda":
        raise ValueError(f"device must be 'cpu' or DeviceFacts, got '{device}' without kernels: {build_info().reason}")
    return DeviceFacts(*extension().device_facts(torch.cuda.current_device() if device.index is None else device.index))


def checkpoint_interval(T: int, N: int, dtype: torch.dtype) -> int:
    """Time steps between the checkpoints of the membrane that training keeps where it recomputes the rest.

    Checkpoints take a sixteenth of the membrane's bytes at most (they are float32 also for 16-bit types), long
    sequences keep 64 of them, and the products between two have 128 rows at least.

    Args:
        T: time steps.
        N: batch.
        dtype: compute dtype.
    """
    # sym_max leaves open what a graph leaves open, but torch.compile of torch 2.11 takes no numbers for it.
    largest: Any = max if isinstance(T, int) and isinstance(N, int) else torch.sym_max
    interval: int = largest(largest(32 if dtype.itemsize < 4 else 16, T // 64), 128 // largest(N, 1))
    return interval


def rnn_tf32() -> bool:
    """Whether float32 products may take TF32: the layer stands in for nn.RNN, and follows its switch."""
    rnn: Any = torch.backends.cudnn.rnn  # its attributes are made at run time
    return bool(rnn.fp32_precision == "tf32")


torch.serialization.add_safe_globals([Plan, Tiles])  # which torch.load then takes from a checkpoint of weights only
