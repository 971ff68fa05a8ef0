"""The emulator of tests/emulation: it runs what is right, and catches what is planted.

The sample kernels of tests/emulation/planted run as a program, so that one which must not survive may end its process.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .emulation.build import SANITIZERS, build, build_harness
from .emulation.control import schedule
from .implementations import Implementation
from .problems import draw

ORDERS = ["forward", "reverse", "random:1", "random:2", "random:3"]

# Kernels whose results no order of threads may change; most check them too.
CORRECT = [
    *["exchange", "exchange-in-warp", "reduce", "rotate"],
    *["device-read", "device-write", "shared-read", "shared-unwritten", "vector-access"],
    *["shuffles", "votes", "divergence", "early-return"],
    *["look-back", "hand-over", "publish", "publish-by-warp"],
    *["indices", "threads", "limits", "shared-limits"],
    *["copy", "copy-8", "copy-4", "copy-groups", "copy-slot-reuse"],
    *["multiply-bfloat16", "multiply-float16", "multiply-tf32", "load-matrices", "round-to-tf32"],
    *["multiply-loaded-bfloat16", "multiply-loaded-float16", "multiply-loaded-tf32"],
]

Run = Callable[..., subprocess.CompletedProcess[str]]


def runner(program: Path) -> Run:
    def run(*cases: str, order: str = "forward", **settings: int) -> subprocess.CompletedProcess[str]:
        outside = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("LEAKYPAR_EMULATION") and name != "LD_PRELOAD"
        }
        inside = {f"LEAKYPAR_EMULATION_{name.upper()}": str(value) for name, value in settings.items()}
        return subprocess.run(
            [program, *cases],
            env=outside | inside | {"LEAKYPAR_EMULATION_ORDER": order},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="module")
def plain() -> Run:
    return runner(build_harness())


@pytest.fixture(scope="module")
def sanitized() -> Run:
    return runner(build_harness(SANITIZERS))


@pytest.fixture(params=["plain", "sanitized"])
def harness(request: pytest.FixtureRequest) -> Run:
    """The sample kernels, compiled without and with sanitizers."""
    return request.getfixturevalue(request.param)


def bits(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What each case printed."""
    assert result.returncode == 0, result.stderr
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def test_no_order_changes_a_correct_kernel(harness: Run) -> None:
    expected = bits(harness(*CORRECT))
    assert list(expected) == CORRECT
    for order in ORDERS[1:]:
        assert bits(harness(*CORRECT, order=order)) == expected, order


@pytest.mark.parametrize("resident", [1, 2, 8])
def test_blocks_that_wait_for_each_other_make_progress(plain: Run, resident: int) -> None:
    cases = ["look-back", "publish"] if resident > 1 else ["look-back"]
    expected = bits(plain(*cases))
    for order in ORDERS:
        assert bits(plain(*cases, order=order, resident=resident)) == expected, order


@pytest.mark.parametrize("case", ["exchange", "exchange-in-warp", "reduce", "rotate", "copy", "copy-slot-reuse"])
def test_a_missing_barrier_changes_the_bits(harness: Run, case: str) -> None:
    planted = f"{case}-without-barrier"
    found = {bits(harness(planted, order=order))[planted] for order in ORDERS}
    assert len(found) > 1
    assert len({bits(harness(case, order=order))[case] for order in ORDERS}) == 1


def test_a_copy_that_is_not_waited_for_is_not_there(harness: Run) -> None:
    case = "copy-without-wait"
    for order in ORDERS:
        assert set(bytes.fromhex(bits(harness(case, order=order))[case])) == {0xFF}


@pytest.mark.parametrize("case", ["publish-flag-first", "publish-read-first"])
def test_a_flag_raised_too_early_or_seen_too_late_changes_the_bits(plain: Run, case: str) -> None:
    found = {bits(plain(case, order=f"random:{seed}"))[case] for seed in range(16)}
    assert found == {"00000000", "07000000"}


def test_a_flag_raised_for_a_warp_that_has_not_met_changes_the_bits(plain: Run) -> None:
    case = "publish-by-warp-without-meeting"
    assert len({bits(plain(case, order=f"random:{seed}"))[case] for seed in range(16)}) > 1


def test_an_order_is_what_it_says_and_the_same_every_time(harness: Run) -> None:
    def numbers(order: str) -> list[int]:
        data = bytes.fromhex(bits(harness("order", order=order, resident=1))["order"])
        return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]

    count = 3 * 40
    assert numbers("forward") == list(range(count))
    assert numbers("reverse") == list(reversed(range(count)))
    assert numbers("random:5") == numbers("random:5") != numbers("random:6")
    assert sorted(numbers("random:5")) == list(range(count))


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("device-read-past-the-end", "AddressSanitizer: heap-buffer-overflow"),
        ("device-write-past-the-end", "AddressSanitizer: heap-buffer-overflow"),
        ("shared-read-past-the-end", "AddressSanitizer: heap-buffer-overflow"),
        ("vector-access-misaligned", "runtime error: .*misaligned address .* requires 16 byte alignment"),
    ],
)
def test_a_bad_access_is_caught(sanitized: Run, case: str, error: str) -> None:
    result = sanitized(case)
    assert result.returncode != 0
    assert re.search(error, result.stderr)
    assert "bounds.cu" in result.stderr


@pytest.mark.parametrize(
    ("case", "report"),
    [
        (
            "wait-for-each-other",
            [
                "a wait that cannot end",
                r"threads 0-15: at __shfl_sync\(mask 0xffffffff\) at faults.cu:\d+",
                r"threads 16-63: at __syncthreads at faults.cu:\d+",
            ],
        ),
        (
            "mixed-operations",
            ["a wait that cannot end", "threads 0,2,4,.*: at __ballot_sync", "threads 1,3,5,.*: at __syncwarp"],
        ),
        (
            "barrier-in-branches",
            [
                r"one barrier reached at two places, now at faults.cu:\d+",
                r"in block \(0,0,0\), thread \(32,0,0\)",
                r"threads 0-31: at __syncthreads at faults.cu:\d+",
            ],
        ),
        ("spin", ["a spin that does not end", "threads 0-63: in __nanosleep"]),
        ("outside-mask", ["a warp operation whose mask 0x7fffffff leaves it out", r"thread \(31,0,0\)"]),
        ("odd-width", ["a shuffle's width is 12, not a power of two up to 32"]),
        ("barrier-outside-kernel", ["__syncthreads is called outside a kernel"]),
        ("copy-misaligned", ["the source of an asynchronous copy is not on a boundary of 16 bytes"]),
        ("copy-outside-shared", ["the destination of an asynchronous copy is outside shared memory"]),
        (
            "multiply-without-a-lane",
            ["mma.sync of bfloat16 takes all 32 lanes of a warp, and only 0x7fffffff came"],
        ),
        ("multiply-in-a-short-warp", ["takes all 32 lanes of a warp, and only 0x000fffff came"]),
    ],
)
def test_a_fault_is_reported(harness: Run, case: str, report: list[str]) -> None:
    result = harness(case, spin_limit=100_000)
    assert result.returncode == -6, result.stderr  # aborted
    for line in report:
        assert re.search(line, result.stderr), result.stderr


def test_a_block_that_waits_for_one_not_yet_started_is_reported(plain: Run) -> None:
    result = plain("look-back-without-ticket", order="reverse", spin_limit=100_000)
    assert result.returncode == -6
    assert "a spin that does not end" in result.stderr
    assert "block (299,0,0):" in result.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [("order", "sideways"), ("order", "random:"), ("resident", "0"), ("multiprocessors", "few"), ("spin_limit", "-1")],
)
def test_a_setting_that_is_not_understood_is_reported(plain: Run, setting: str, value: str) -> None:
    result = plain("order", **{setting: value})  # type: ignore[arg-type]
    assert result.returncode == -6
    assert f'LEAKYPAR_EMULATION_{setting.upper()} is "{value}"; expected' in result.stderr


def test_no_schedule_changes_the_bits_of_the_layer(emulated_implementation: Implementation) -> None:
    library = build(os.environ.get("LEAKYPAR_EMULATION_SANITIZE"))

    def results(order: str, resident_blocks: int, dtype: torch.dtype) -> list[torch.Tensor]:
        problem = draw(300, 3, 5, 40, dtype=dtype)
        with schedule(library, order, resident_blocks):
            outputs = emulated_implementation.run(**problem.arguments())
            generator = torch.Generator().manual_seed(1)
            loss = sum(
                (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum()
                for output in outputs
            )
            inputs = problem.tensors()
            gradients = torch.autograd.grad(loss, list(inputs.values()))
        return [*outputs, *gradients]

    for dtype in (torch.float32, torch.bfloat16):
        expected = results("forward", 4, dtype)
        for order, resident_blocks in [("forward", 1), ("reverse", 4), ("random:1", 2), ("random:2", 8)]:
            for one, other in zip(results(order, resident_blocks, dtype), expected, strict=True):
                assert torch.equal(one, other), (order, resident_blocks, dtype)
