"""The operators' raw arguments: what comes is computed or refused by name; no foreign memory is read."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch

from leakypar import ops

if not ops.is_available("cpu"):
    pytest.skip(ops.unavailable_reason("cpu"), allow_module_level=True)

T, N, C, H = 40, 2, 3, 4


def forward_arguments() -> dict[str, Any]:
    return {
        "x": (torch.rand(T, N, C) < 0.5).float(),
        "weight": torch.randn(H, C),
        "decay": torch.rand(H),
        "bias_ih": torch.randn(H),
        "bias_hh": torch.randn(H),
        "threshold": torch.rand(H),
        "gain": torch.rand(H),
        "initial_membrane": torch.rand(N, H),
        "lengths": torch.tensor([T, T // 2]),
        "seed": torch.tensor(3),
        "lower": -0.5,
        "upper": 2.0,
        "dropout": 0.25,
        "outputs": 0b11111,
        "allow_tf32": False,
        "method": None,
        "gemm_chunk": 8,
        "tiles": None,
        "event_rate": None,
        "binary_input": True,
    }


def backward_arguments(recompute: bool, with_events: bool = False) -> dict[str, Any]:
    given = forward_arguments()
    spikes, membrane, checkpoints, final, bits, value = torch.ops.leakypar.forward(*given.values())
    names = list(given)[: list(given).index("outputs")]
    return {
        "grad_spikes": torch.randn_like(spikes),
        "grad_membrane": torch.randn_like(membrane),
        "grad_final_membrane": torch.randn_like(final),
        "membrane": None if recompute else membrane,
        "checkpoints": checkpoints if recompute else None,
        "event_bits": bits if with_events else None,
        "event_value": value if with_events else None,
        **{name: None if with_events and name == "x" else given[name] for name in names},
        "surrogate": 1,
        "p0": 2.0,
        "p1": 0.0,
        "outputs": 0b1111111,
        "allow_tf32": False,
        "method": None,
        "gemm_chunk": 8,
        "event_rate": None,
        "backward_event_rate": None,
        "features": C,
    }


CALLS = {
    "forward": (torch.ops.leakypar.forward, forward_arguments),
    "backward": (torch.ops.leakypar.backward, lambda: backward_arguments(False)),
    "recompute": (torch.ops.leakypar.backward, lambda: backward_arguments(True)),
    "events": (torch.ops.leakypar.backward, lambda: backward_arguments(True, True)),
}
TENSORS = [
    (call, name) for call, (_, make) in CALLS.items() for name, value in make().items() if torch.is_tensor(value)
]


@pytest.mark.parametrize("call", CALLS)
def test_the_arguments_are_good(call: str) -> None:
    operator, make = CALLS[call]
    assert all(result.isfinite().all() for result in operator(*make().values()))


def refused(call: str, name: str, value: torch.Tensor) -> str:
    operator, make = CALLS[call]
    arguments = make()
    arguments[name] = value
    with pytest.raises(RuntimeError) as error:
        operator(*arguments.values())
    return str(error.value)


@pytest.mark.parametrize(("call", "name"), TENSORS)
def test_freed_memory_is_refused(call: str, name: str) -> None:
    value = CALLS[call][1]()[name].clone()
    value.untyped_storage().resize_(0)
    assert f"{name} has a storage of 0 bytes" in refused(call, name, value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64])
@pytest.mark.parametrize(("call", "name"), TENSORS)
def test_other_types_are_refused(call: str, name: str, dtype: torch.dtype) -> None:
    value = CALLS[call][1]()[name]
    assert name in refused(call, name, value.to(dtype))


@pytest.mark.parametrize(
    ("call", "name"), [each for each in TENSORS if each[1] not in ("lengths", "seed", "event_bits")]
)
def test_int64_is_refused(call: str, name: str) -> None:
    assert refused(call, name, CALLS[call][1]()[name].long())


@pytest.mark.parametrize(
    ("call", "name"), [each for each in TENSORS if each[1] not in ("lengths", "seed", "event_bits")]
)
def test_sparse_tensors_are_refused(call: str, name: str) -> None:
    operator, make = CALLS[call]
    arguments = make()
    arguments[name] = arguments[name].to_sparse()
    with pytest.raises((RuntimeError, NotImplementedError)):
        operator(*arguments.values())


def test_expanded_checkpoints_are_refused() -> None:
    """One element in memory, which was once read as many."""
    checkpoints = backward_arguments(True)["checkpoints"]
    assert checkpoints.numel() > 0
    assert "checkpoints" in refused("recompute", "checkpoints", torch.zeros(1).expand(checkpoints.shape))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("event_bits", torch.zeros(40, 2, 2, dtype=torch.int64), "event_bits has shape"),
        ("event_bits", torch.zeros(40, 2, 2, dtype=torch.int64)[..., :1], "event_bits is not contiguous"),
        ("event_bits", None, "neither x nor event_bits is given"),
        ("event_value", torch.zeros(2), "event_value has shape"),
        ("event_value", torch.zeros(1, dtype=torch.float64), "has dtype"),
        ("event_value", None, "event_value is not given"),
        ("features", None, "features is not given"),
        ("features", 65, "has shape"),
        ("features", 2, "weight has shape"),
        ("features", -1, "features is -1"),
        ("event_rate", 1.5, "event_rate must be from 0 to 1"),
        ("backward_event_rate", math.nan, "backward_event_rate must be from 0 to 1"),
    ],
)
def test_wrong_events_are_refused(name: str, value: object, message: str) -> None:
    arguments = backward_arguments(True, True)
    arguments[name] = value
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.leakypar.backward(*arguments.values())


@pytest.mark.parametrize(("N", "H"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("steps", [1000, 2**62])
def test_nothing_to_compute_takes_no_time(N: int, H: int, steps: int) -> None:
    x, weight = torch.zeros(steps, N, 0), torch.zeros(H, 0)
    vector = torch.ones(H)
    begin = time.monotonic()
    neurons = [x, weight, vector, None, None, vector, vector, None, None, None, 0.0, 1.0, 0.0]
    spikes, _, _, final, *_ = torch.ops.leakypar.forward(*neurons, 0b1011, False, None, None, None, None, False)
    assert spikes.shape == (steps, N, H)
    assert final.shape == (N, H)
    grads = torch.ops.leakypar.backward(
        spikes, None, None, spikes, None, None, None, *neurons, 1, 2.0, 0.0, 0b1111111, False, *[None] * 5
    )
    assert [list(grad.shape) for grad in grads[:3]] == [[steps, N, 0], [H, 0], [H]]
    assert time.monotonic() - begin < 5


def test_the_gradient_of_inputs_to_no_neurons_is_zero() -> None:
    neurons = [
        torch.ones(5, 2, 3),
        torch.zeros(0, 3),
        *[torch.ones(0)] * 3,
        torch.ones(0),
        torch.ones(0),
        None,
        None,
        None,
        0.0,
        1.0,
        0.0,
    ]
    membrane = torch.zeros(5, 2, 0)
    grad_x, *_ = torch.ops.leakypar.backward(
        membrane, None, None, membrane, None, None, None, *neurons, 1, 2.0, 0.0, 0b1111111, False, *[None] * 5
    )
    assert torch.equal(grad_x, torch.zeros(5, 2, 3))
