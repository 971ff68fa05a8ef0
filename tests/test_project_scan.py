"""project_scan: the kernel by itself over every tiling, its plan, and the layer through it in TF32."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import leakypar
from leakypar import launch_plan, ops
from leakypar.build_info import extension
from leakypar.launch_plan import DeviceFacts
from tools import predictions
from tools.predictions import H100

from .emulation.build import SANITIZERS, build_harness
from .emulation.control import schedule
from .implementations import CPU, EMULATED, Implementation, emulated_library, emulation, fused, unavailable
from .problems import Problem, draw
from .test_emulation import bits, runner
from .test_implementations import check_outputs, outputs
from .test_plan import SHAPES

# The kernel against a loop in double precision, over every tile shape, resident and streamed weights, one block and
# several a group: planted/project_scan.cu. The long case is more tiles than one look-back sees.
CASES = [
    *["project-ragged-bfloat16", "project-ragged-float16", "project-ragged-tf32"],
    *["project-aligned-bfloat16", "project-aligned-tf32"],
    *["project-strides-bfloat16", "project-strides-tf32"],
    *["project-options-bfloat16", "project-options-float16", "project-options-tf32"],
    "project-long",
]
SANITIZED = ["project-ragged-bfloat16", "project-strides-bfloat16", "project-strides-tf32", "project-options-tf32"]

needs_extension = pytest.mark.skipif(unavailable(CPU) is not None, reason=str(unavailable(CPU)))

# Of a consumer GPU: compute capability 8.6.
SMALL = DeviceFacts(28, 3 << 20, 99 << 10, 100 << 10, clock_khz=1_777_000, bytes_per_second=360 * 10**9, capability=86)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def harness() -> Run:
    return runner(build_harness())


@pytest.mark.parametrize("case", CASES)
def test_every_tiling_agrees_with_a_loop_whatever_the_order_of_threads(harness: Run, case: str) -> None:
    expected = bits(harness(case))
    for order, resident in (("reverse", 4), ("random:1", 3), ("random:2", 8), ("forward", 1)):
        assert bits(harness(case, order=order, resident=resident)) == expected, (order, resident)


@pytest.mark.parametrize("case", SANITIZED)
def test_no_access_is_out_of_bounds_or_misaligned(case: str) -> None:
    bits(runner(build_harness(SANITIZERS))(case))


def round_to_tf32(tensor: Tensor) -> Tensor:
    """float32 values of eleven significant bits, which the product takes as they are."""
    shifted = tensor.detach().float().view(torch.int32) + 0x1000
    return (shifted & ~0x1FFF).view(torch.float32).to(tensor.dtype).requires_grad_()


def draw_tf32(T: int, N: int, C: int, H: int, **options: object) -> Problem:
    problem = draw(T, N, C, H, dtype=torch.float32, **options)  # type: ignore[arg-type]
    problem.x, problem.weight = round_to_tf32(problem.x), round_to_tf32(problem.weight)
    return problem


def run_tf32(**arguments: Tensor) -> tuple[Tensor, ...]:
    return leakypar.leaky_parallel(**arguments, plan="fused", return_membrane=True, return_state=True)


TF32 = Implementation("emulated-fused-tf32", "cpu", False, run_tf32)


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[Implementation]:
    """The layer on the emulated kernels, with TF32 allowed."""
    monkeypatch.setattr(ops, "_allow_tf32", lambda tensor: tensor.dtype == torch.float32)
    with emulation():
        yield TF32


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (31, 3, 5, 37), (129, 2, 40, 130), (300, 9, 33, 24), (5, 0, 3, 4)])
def test_tf32_products_of_tf32_operands_are_exact_to_float32(
    tf32: Implementation, shape: tuple[int, int, int, int]
) -> None:
    check_outputs(tf32, draw_tf32(*shape), torch.float32)


@pytest.mark.parametrize("decay", ["negative", "zero", "one", "above-one"])
def test_tf32_with_any_decay(tf32: Implementation, decay: str) -> None:
    check_outputs(tf32, draw_tf32(150, 2, 9, 17, decay=decay), torch.float32)


def test_tf32_rounds_to_nearest(tf32: Implementation) -> None:
    """Operands that are not TF32 are rounded, not cut off: the bits are those of operands rounded before."""
    problem = draw(70, 2, 40, 24, dtype=torch.float32)
    rounded = Problem(**problem.arguments())
    rounded.x, rounded.weight = round_to_tf32(problem.x), round_to_tf32(problem.weight)
    for one, other in zip(outputs(tf32, problem, torch.float32), outputs(tf32, rounded, torch.float32), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def emulated_fused() -> Iterator[Implementation]:
    with emulation():
        yield next(implementation for implementation in EMULATED if implementation.name == "emulated-fused")


def test_views_are_read_where_they_lie(emulated_fused: Implementation) -> None:
    """Slices and expansions of x, and of the weights: the same bits as of a copy."""
    problem = draw(40, 4, 24, 24, dtype=torch.bfloat16)
    x, weight = problem.x.detach(), problem.weight.detach()
    wide = torch.full((40, 5, 31), float("nan"), dtype=torch.bfloat16)
    wide[:, 1:, 3:27] = x
    tall = torch.full((24, 33), float("nan"), dtype=torch.bfloat16)
    tall[:, 8:32] = weight
    transposed = x.transpose(0, 1).contiguous().transpose(0, 1)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    expected = emulated_fused.run(**problem.arguments())
    for view, matrix in (
        (wide[:, 1:, 3:27], weight),
        (transposed, tall[:, 8:32]),
        (strided, weight.t().contiguous().t()),
    ):
        for one, other in zip(
            emulated_fused.run(**{**problem.arguments(), "x": view, "weight": matrix}), expected, strict=True
        ):
            assert torch.equal(one, other)
    repeated = x[:, :1].expand(40, 4, 24)
    arguments = {**problem.arguments(), "x": repeated}
    for one, other in zip(
        emulated_fused.run(**arguments), emulated_fused.run(**{**arguments, "x": repeated.contiguous()}), strict=True
    ):
        assert torch.equal(one, other)


def test_chunks_of_the_fused_forward_join(emulated_fused: Implementation) -> None:
    problem = draw(90, 3, 7, 20, dtype=torch.bfloat16)
    whole = emulated_fused.run(**problem.arguments())
    for steps in (1, 16, 89):
        plan = leakypar.Plan("fused", "split", steps, 90)
        options = {"plan": plan, "return_membrane": True, "return_state": True}
        for piece, same in zip(leakypar.leaky_parallel(**problem.arguments(), **options), whole, strict=True):
            torch.testing.assert_close(piece, same, rtol=1e-2, atol=1e-2)


def test_the_order_of_blocks_does_not_show(emulated_fused: Implementation) -> None:
    problem = draw(700, 2, 3, 70, dtype=torch.bfloat16)
    expected = emulated_fused.run(**problem.arguments())
    for order, resident in (("reverse", 1), ("random:1", 3), ("random:2", 16)):
        with schedule(emulated_library(), order, resident):
            for one, other in zip(emulated_fused.run(**problem.arguments()), expected, strict=True):
                assert torch.equal(one, other), (order, resident)


def test_what_cannot_be_fused_is_named() -> None:
    problem = draw(5, 2, 3, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"'fused' is for float16.*x is torch.float32 on cpu, TF32 not allowed"):
        leakypar.leaky_parallel(**problem.arguments(), plan="fused")
    with emulation():
        double = draw(5, 2, 3, 4, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"x is torch.float64"):
            leakypar.leaky_parallel(**double.arguments(), plan="fused")
        raw = [double.x, double.weight, None, None, double.decay, double.threshold, double.gain, None, None, 0.0]
        with pytest.raises(RuntimeError, match="the fused kernel computes float16, bfloat16"):
            ops._library.forward.default(*raw, True, False, False, False, False, "fused", 0, [])
        half = draw(5, 2, 3, 4, dtype=torch.float16)
        recompute = fused("", "cpu", "fused", recompute=True)
        with pytest.raises(ValueError, match="'fused' does not go with recompute=True"):
            recompute.run(**half.arguments())


def predicted(name: str, element_bytes: int, device: DeviceFacts) -> dict[str, Any]:
    sizes = dict(zip("TNCH", SHAPES[name], strict=True))
    return extension().predict(**sizes, element_bytes=element_bytes, **device._asdict())


@needs_extension
@pytest.mark.parametrize("device", [H100, SMALL], ids=["h100", "small"])
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_tiles_fit_and_keep_the_chip_busy(name: str, element_bytes: int, device: DeviceFacts) -> None:
    T, N, _, H = SHAPES[name]
    plan = predicted(name, element_bytes, device)
    assert plan["shared_bytes"] <= device.shared_bytes_of_block
    per_multiprocessor = plan["blocks_per_multiprocessor"]
    assert per_multiprocessor >= 1
    assert per_multiprocessor * (plan["shared_bytes"] + 1024) <= device.shared_bytes_of_multiprocessor
    blocks = plan["groups"] * plan["blocks_per_group"]
    # Most multiprocessors have a block, unless every tile already is a block of its own.
    assert 2 * blocks >= device.multiprocessors * per_multiprocessor or blocks == plan["tiles"]
    assert plan["groups"] * plan["batch_rows"] * 128 >= N * H
    # Columns beyond the sequence or the batch are few.
    assert plan["tiles"] * plan["columns"] <= 1.5 * T * N * -(-H // 128)


@needs_extension
def test_weights_stay_where_there_is_room() -> None:
    for name in ("speech", "long", "streaming", "audio", "onm"):
        assert predicted(name, 2, H100)["resident"], name
    assert not predicted("square", 2, H100)["resident"]  # half a MiB of them


@needs_extension
@pytest.mark.parametrize("device", [H100, SMALL], ids=["h100", "small"])
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_takes_what_should_be_faster(name: str, element_bytes: int, device: DeviceFacts) -> None:
    sizes, dtype = SHAPES[name], {2: torch.bfloat16, 4: torch.float32}[element_bytes]
    chosen = leakypar.plan(*sizes, dtype=dtype, device=device, tf32=True)
    expected = predicted(name, element_bytes, device)
    assert (chosen.scan_forward == "fused") == (expected["fused_us"] <= expected["chunked_us"])
    # Nothing is predicted to beat the memory: x is read once, and spikes are written once.
    T, N, C, H = sizes
    moved = T * N * (C + H) * element_bytes / device.bytes_per_second * 1e6
    assert min(expected["fused_us"], expected["chunked_us"]) > moved


@needs_extension
def test_the_page_has_the_predictions_of_the_code() -> None:
    page = predictions.PAGE.read_text(encoding="utf-8")
    assert predictions.rewritten(page) == page, "python -m tools.predictions rewrites it"


@needs_extension
def test_longer_sequences_cost_more() -> None:
    sizes = {"N": 8, "C": 256, "H": 1024, "element_bytes": 2}
    costs = [extension().predict(T=T, **sizes, **H100._asdict()) for T in (256, 1024, 4096, 16384)]
    for shorter, longer in pairwise(costs):
        for which in ("fused_us", "chunked_us"):
            assert shorter[which] < longer[which] < 4.1 * shorter[which]


@needs_extension
def test_the_plan_names_the_fused_forward() -> None:
    sizes = SHAPES["audio"]
    assert leakypar.plan(*sizes, dtype=torch.bfloat16, device=H100)[:3] == ("fused", "split", sizes[0])
    assert leakypar.plan(*sizes, dtype=torch.float32, device=H100, tf32=False).scan_forward == "split"
    assert leakypar.plan(*sizes, dtype=torch.float64, device=H100).scan_forward != "fused"
    # A long product is the vendor's; so is everything on a device whose facts are not known, and on the CPU.
    assert leakypar.plan(*SHAPES["square"], dtype=torch.bfloat16, device=H100).scan_forward == "split"
    for unknown in ("shared_bytes_of_block", "clock_khz", "bytes_per_second"):
        device = H100._replace(**{unknown: 0})
        assert leakypar.plan(*sizes, dtype=torch.bfloat16, device=device).scan_forward == "split", unknown
    assert leakypar.plan(*sizes, dtype=torch.bfloat16, device="cpu").scan_forward == "lane"
    assert launch_plan.launch("fused") == ("fused", "auto", 0, 0, ())


@needs_extension
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_tells_the_tiles_and_can_be_forced_as_read(name: str, element_bytes: int) -> None:
    dtype = {2: torch.bfloat16, 4: torch.float32}[element_bytes]
    chosen = leakypar.plan(*SHAPES[name], dtype=dtype, device=H100, tf32=True)
    if chosen.scan_forward != "fused":
        assert chosen.tiles is None
        return
    assert chosen.tiles is not None
    detailed = predicted(name, element_bytes, H100)
    assert chosen.tiles._asdict() == {field: detailed[field] for field in leakypar.Tiles._fields}
    assert launch_plan.launch(chosen) == (*chosen[:4], tuple(map(int, chosen.tiles)))


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(
    ("columns", "batch_rows", "stages", "blocks"),
    [(64, 1, 2, 3), (64, 8, 4, 1), (128, 2, 3, 2), (128, 4, 2, 100), (128, 1, 4, 1)],
)
def test_forced_tiles(
    emulated_fused: Implementation, columns: int, batch_rows: int, stages: int, blocks: int, resident: bool
) -> None:
    """Whatever the tiles are, the results are those of the specification; and no call uses others unseen."""
    problem = draw(150, 5, 200, 24, dtype=torch.bfloat16)
    plan = leakypar.Plan("fused", "split", 150, 150, leakypar.Tiles(columns, batch_rows, stages, resident, blocks))
    with torch.no_grad():
        ours = leakypar.leaky_parallel(**problem.arguments(), plan=plan, return_membrane=True, return_state=True)
        theirs = emulated_fused.run(**problem.arguments())
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    assert (ours[0] != theirs[0]).double().mean().item() < 0.01


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ([128, 1, 2, 1], "tiles has 4 values, expected columns, batch_rows, stages, resident and blocks_per_group"),
        ([32, 1, 2, 1, 1], "tiles has columns 32, expected one of 64, 128"),
        ([64, 5, 2, 1, 1], "tiles has batch_rows 5, expected one of 1, 2, 4, 8"),
        ([64, 1, 0, 1, 1], "tiles has stages 0, expected one of 1, 2, 3, 4"),
        ([64, 1, 1, 1, 1], "tiles has stages 1, expected 2 or more where C = 2048 takes 32 slices"),
        ([64, 1, 2, 2, 1], "tiles has resident 2, expected one of 0, 1"),
        ([64, 1, 2, 1, 0], "tiles has blocks_per_group 0, expected 1 or more"),
        (
            [64, 1, 2, 1, 1],
            "tiles of columns 64, .* take [0-9]+ bytes of shared memory, a block of the device has [0-9]+",
        ),
    ],
)
def test_wrong_tiles_are_named(emulated_fused: Implementation, forced: list[int], message: str) -> None:
    problem = draw(5, 2, 2048, 4, dtype=torch.bfloat16)
    given = [value.detach() for value in (problem.x, problem.weight, problem.decay, problem.threshold, problem.gain)]
    x, weight, *neurons = given
    raw = [x, weight, None, None, *neurons, None, None, 0.0, True, False, False, False, False, "fused", 0]
    with pytest.raises(RuntimeError, match=message):
        ops._library.forward.default(*raw, forced)
