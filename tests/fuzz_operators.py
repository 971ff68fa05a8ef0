"""Calls both operators with arguments that nobody should pass: each is computed or refused; none ends the process.

    python -m tests.fuzz_operators --seconds 60
    python -m tests.emulation.build --sanitize address,undefined -- \\
        python -m tests.fuzz_operators --seconds 120 --emulated

The second runs the emulated CUDA kernels under AddressSanitizer. Rounds are processes of their own, so that one which
dies is found; its seed is printed, and repeats it with --seed. Every result is read, and inputs must stay as they were.
"""

from __future__ import annotations

import argparse
import random
import secrets
import subprocess
import sys
import time
from typing import Any

CASES = 2000  # of a round
REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AttributeError)


def odd_tensor(rng: random.Random, value: Any) -> Any:
    """A tensor like this one, but for what makes it wrong, or right in an unusual way."""
    import torch

    kind = rng.randrange(14)
    if kind == 0:
        return None
    if kind == 1:
        freed = value.clone()
        freed.untyped_storage().resize_(rng.choice([0, 1, freed.untyped_storage().nbytes() // 2]))
        return freed
    if kind == 2:
        return value.to(
            rng.choice([torch.int8, torch.int64, torch.bool, torch.complex64, torch.float64, torch.float16])
        )
    if kind == 3:
        return torch.zeros((), dtype=value.dtype).expand(value.shape)
    if kind == 4:
        return value.transpose(0, -1) if value.dim() else value[None]
    if kind == 5:
        return value.transpose(0, -1).contiguous().transpose(0, -1) if value.dim() else value
    if kind == 6:
        return value[..., ::2] if value.dim() else value.clone()
    if kind == 7:
        return (
            torch.zeros([*value.shape[:-1], 2 * value.shape[-1]], dtype=value.dtype)[..., ::2] if value.dim() else value
        )
    if kind == 8:
        return value.flatten()
    if kind == 9:
        return torch.empty([rng.choice([0, 1, 2, 5]) for _ in range(rng.randrange(5))], dtype=value.dtype)
    if kind == 10:
        return value.to_sparse() if value.dim() else value
    if kind == 11:
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if kind == 12:
        return torch.full_like(
            value, rng.choice([float("inf"), float("nan"), -6e4]) if value.is_floating_point() else 7
        )
    return torch.zeros(value.numel() + 1, dtype=value.dtype)[1:].view(value.shape)


def odd_value(rng: random.Random, name: str) -> Any:
    values: dict[str, list[Any]] = {
        "lower": [0.0, 2.0, -3e38, float("inf"), float("nan")],
        "upper": [0.0, 2.0, 3e38, float("-inf"), float("nan")],
        "dropout": [0.0, 1.0, -1.0, 2.0, float("nan"), float("inf")],
        "surrogate": [-1, *range(10), 10, 2**40],
        "p0": [0.0, -3e38, 3e38, float("inf"), float("nan")],
        "p1": [0.0, -3e38, 3e38, float("inf"), float("nan")],
        "outputs": [0, 1, 2, 4, 8, 15, 16, 31, 32, 127, 128, -1, 2**62],
        "allow_tf32": [True, False],
        "method": [None, "sequential", "look_back", "project_scan", "", "lane"],
        "gemm_chunk": [None, 0, 1, 3, 10**6, -1, 2**62],
        "event_rate": [None, 0.0, 0.5, 1.0, -1.0, float("nan"), float("inf")],
        "backward_event_rate": [None, 0.0, 1.0, 2.0, float("nan")],
        "binary_input": [True, False],
        "features": [None, 0, 1, 3, 64, 65, -1, 2**62],
        "tiles": [None, [], [64, 1, 2, 0, 1], [128, 8, 4, 1, 3], [0] * 5, [-1] * 5, [64], [2**62] * 5],
    }
    return rng.choice(values[name])


def arguments(rng: random.Random, forward: Any) -> tuple[bool, dict[str, Any]]:
    """Arguments of the backward, if that comes first in the pair, or of the forward; good ones."""
    import torch

    dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16])
    T, N, C, H = (rng.choice(sizes) for sizes in ([0, 1, 7, 70], [0, 1, 2, 3], [0, 1, 4], [0, 1, 5, 16]))
    state = torch.float64 if dtype == torch.float64 else torch.float32
    is_binary = rng.random() < 0.5
    x = (torch.rand(T, N, C) < 0.3).float() if is_binary else torch.randn(T, N, C)
    vector = lambda: torch.rand(rng.choice([(H,), (H,), (1,), ()]), dtype=state)  # noqa: E731
    given: dict[str, Any] = {
        "x": x.to(dtype),
        "weight": torch.randn(H, C).to(dtype),
        "decay": torch.randn(H, dtype=state),
        "bias_ih": rng.choice([None, torch.randn(H, dtype=dtype)]),
        "bias_hh": rng.choice([None, torch.randn(H, dtype=dtype)]),
        "threshold": vector(),
        "gain": vector(),
        "initial_membrane": rng.choice([None, torch.rand(N, H, dtype=state)]),
        "lengths": rng.choice([None, torch.tensor([rng.randrange(-1, T + 2) for _ in range(N)], dtype=torch.int64)]),
        "seed": rng.choice([None, torch.tensor(3)]),
        "lower": rng.choice([0.0, -0.5, None]),
        "upper": rng.choice([1.0, None]),
        "dropout": 0.25,
    }
    end = {"allow_tf32": False, "method": None, "gemm_chunk": rng.choice([3, 8, 100])}
    recompute = rng.random() < 0.5
    outputs = 0b1101 if recompute else 0b1011
    outputs |= 0b10000 * is_binary
    rest = {"tiles": None, "event_rate": rng.choice([None, 0.0]), "binary_input": is_binary}
    if rng.random() < 0.4:
        return False, {**given, "outputs": outputs, **end, **rest}
    spikes, membrane, checkpoints, final, *events = forward(*given.values(), outputs, *end.values(), *rest.values())
    bits, value = events if is_binary else (None, None)
    return True, {
        "grad_spikes": rng.choice([None, torch.randn_like(spikes)]),
        "grad_membrane": rng.choice([None, torch.randn_like(spikes)]),
        "grad_final_membrane": rng.choice([None, torch.randn_like(final)]),
        "membrane": None if recompute else membrane,
        "checkpoints": checkpoints if recompute else None,
        "event_bits": bits,
        "event_value": value,
        **given,
        "x": None if is_binary else given["x"],
        "surrogate": rng.randrange(10),
        "p0": 2.0,
        "p1": 0.5,
        "outputs": 0b1111111,
        **end,
        "event_rate": rest["event_rate"],
        "backward_event_rate": rng.choice([None, 0.0]),
        "features": C,
    }


def one_case(rng: random.Random, library: Any) -> bool:
    """Whether the operator computed; it refused otherwise."""
    import torch

    is_backward, given = arguments(rng, library.forward)
    for name in rng.sample(list(given), rng.choice([0, 1, 1, 2, 3])):
        value = given[name]
        if torch.is_tensor(value):
            given[name] = odd_tensor(rng, value)
        elif value is not None and not name.startswith(
            ("bias", "grad", "seed", "lengths", "initial", "membrane", "check", "event_bits", "event_value")
        ):
            given[name] = odd_value(rng, name)
    inside = {
        name: value.clone()
        for name, value in given.items()
        if torch.is_tensor(value) and value.device.type == "cpu" and value.layout == torch.strided and readable(value)
    }
    try:
        results = (library.backward if is_backward else library.forward)(*given.values())
    except REFUSALS:
        return False
    for name, before in inside.items():
        assert torch.equal(given[name].nan_to_num(), before.nan_to_num()), f"{name} was written to"
    for result in results:
        if result.device.type != "meta":
            result.sum().item()  # reads all of it
    return True


def readable(value: Any) -> bool:
    if value.numel() == 0:
        return True
    last = value.storage_offset() + sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
    return bool((last + 1) * value.element_size() <= value.untyped_storage().nbytes())


def one_round(seed: int, emulated: bool) -> int:
    import torch

    import leakypar  # noqa: F401

    from .implementations import load_emulated

    library = load_emulated() if emulated else torch.ops.leakypar
    torch.manual_seed(seed)
    rng = random.Random(seed)
    computed = sum(one_case(rng, library) for _ in range(CASES))
    assert 0 < computed < CASES
    print(f"fuzz: {CASES} calls, {computed} computed, {CASES - computed} refused", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_operators", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="begin no round after so long")
    parser.add_argument("--seed", type=int, help="run the one round of this seed, in this process")
    parser.add_argument("--emulated", action="store_true", help="the operators over the emulated CUDA kernels")
    options = parser.parse_args()
    if options.seed is not None:
        return one_round(options.seed, options.emulated)
    began, rounds = time.monotonic(), 0
    while rounds == 0 or time.monotonic() - began < options.seconds:
        seed = secrets.randbits(32)
        repeat = ["-X", "faulthandler", "-m", "tests.fuzz_operators", "--seed", str(seed)]
        status = subprocess.run([sys.executable, *repeat, *(["--emulated"] * options.emulated)]).returncode
        if status != 0:
            print(f"fuzz: status {status}; again: {sys.executable} {' '.join(repeat)}", file=sys.stderr)
            return 1
        rounds += 1
    print(f"fuzz: {rounds * CASES} calls, no crash")
    return 0


if __name__ == "__main__":
    sys.exit(main())
