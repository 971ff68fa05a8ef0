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
    return leakypar.leaky_parallel(**arguments, plan="project_scan", return_membrane=True, return_state=True)


TF32 = Implementation("emulated-project_scan-tf32", "cpu", False, run_tf32)


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[Implementation]:
    """The layer on the emulated kernels, with TF32 allowed."""
    monkeypatch.setattr(ops, "allow_tf32", lambda tensor: tensor.dtype == torch.float32)
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
def emulated_project_scan() -> Iterator[Implementation]:
    with emulation():
        yield next(implementation for implementation in EMULATED if implementation.name == "emulated-project_scan")


def test_views_are_read_where_they_lie(emulated_project_scan: Implementation) -> None:
    """Slices and expansions of x, and of the weights: the same bits as of a copy."""
    problem = draw(40, 4, 24, 24, dtype=torch.bfloat16)
    x, weight = problem.x.detach(), problem.weight.detach()
    wide = torch.full((40, 5, 31), float("nan"), dtype=torch.bfloat16)
    wide[:, 1:, 3:27] = x
    tall = torch.full((24, 33), float("nan"), dtype=torch.bfloat16)
    tall[:, 8:32] = weight
    transposed = x.transpose(0, 1).contiguous().transpose(0, 1)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    expected = emulated_project_scan.run(**problem.arguments())
    for view, matrix in (
        (wide[:, 1:, 3:27], weight),
        (transposed, tall[:, 8:32]),
        (strided, weight.t().contiguous().t()),
    ):
        for one, other in zip(
            emulated_project_scan.run(**{**problem.arguments(), "x": view, "weight": matrix}), expected, strict=True
        ):
            assert torch.equal(one, other)
    repeated = x[:, :1].expand(40, 4, 24)
    arguments = {**problem.arguments(), "x": repeated}
    for one, other in zip(
        emulated_project_scan.run(**arguments),
        emulated_project_scan.run(**{**arguments, "x": repeated.contiguous()}),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_chunks_of_project_scan_join(emulated_project_scan: Implementation) -> None:
    problem = draw(90, 3, 7, 20, dtype=torch.bfloat16)
    whole = emulated_project_scan.run(**problem.arguments())
    for steps in (1, 16, 89):
        plan = leakypar.Plan("project_scan", "look_back", steps, 90)
        options = {"plan": plan, "return_membrane": True, "return_state": True}
        for piece, same in zip(leakypar.leaky_parallel(**problem.arguments(), **options), whole, strict=True):
            torch.testing.assert_close(piece, same, rtol=1e-2, atol=1e-2)


def test_the_order_of_blocks_does_not_show(emulated_project_scan: Implementation) -> None:
    problem = draw(700, 2, 3, 70, dtype=torch.bfloat16)
    expected = emulated_project_scan.run(**problem.arguments())
    for order, resident in (("reverse", 1), ("random:1", 3), ("random:2", 16)):
        with schedule(emulated_library(), order, resident):
            for one, other in zip(emulated_project_scan.run(**problem.arguments()), expected, strict=True):
                assert torch.equal(one, other), (order, resident)


def test_what_project_scan_cannot_do_is_named() -> None:
    problem = draw(5, 2, 3, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match="'project_scan' is for float16, bfloat16 and, where TF32"):
        leakypar.leaky_parallel(**problem.arguments(), plan="project_scan")
    with emulation():
        double = draw(5, 2, 3, 4, dtype=torch.float64)
        with pytest.raises(ValueError, match="'project_scan' is for float16"):
            leakypar.leaky_parallel(**double.arguments(), plan="project_scan")
        half = draw(5, 2, 3, 4, dtype=torch.float16)
        recompute = fused("", "cpu", "project_scan", recompute=True)
        with pytest.raises(ValueError, match="'project_scan' does not go with recompute=True"):
            recompute.run(**half.arguments())


PRECISIONS = {"bfloat16": torch.bfloat16, "tf32": torch.float32}


def predicted(name: str, precision: str, device: DeviceFacts) -> dict[str, Any]:
    sizes = dict(zip("TNCH", SHAPES[name], strict=True))
    return extension().predict(**sizes, precision=precision, facts=device)


@needs_extension
@pytest.mark.parametrize("device", [H100, SMALL], ids=["h100", "small"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_tiles_fit_and_keep_the_chip_busy(name: str, precision: str, device: DeviceFacts) -> None:
    T, N, _, H = SHAPES[name]
    plan = predicted(name, precision, device)
    assert plan["shared_bytes"] <= device.shared_bytes_of_block
    per_multiprocessor = plan["blocks_per_multiprocessor"]
    assert per_multiprocessor >= 1
    assert per_multiprocessor * (plan["shared_bytes"] + 1024) <= device.shared_bytes_of_multiprocessor
    blocks = plan["teams"] * plan["time_blocks"]
    # Most multiprocessors have a block, unless every tile already is a block of its own.
    assert 2 * blocks >= device.multiprocessors * per_multiprocessor or blocks == plan["tiles"]
    assert plan["teams"] * plan["batch_rows"] * 128 >= N * H
    # Columns beyond the sequence or the batch are few.
    assert plan["tiles"] * plan["columns"] <= 1.5 * T * N * -(-H // 128)


@needs_extension
def test_weights_stay_where_there_is_room() -> None:
    for name in ("speech", "long", "streaming", "audio", "onm"):
        assert predicted(name, "bfloat16", H100)["weights_resident"], name
    assert not predicted("square", "bfloat16", H100)["weights_resident"]  # half a MiB of them


@needs_extension
@pytest.mark.parametrize("device", [H100, SMALL], ids=["h100", "small"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_takes_what_should_be_faster(name: str, precision: str, device: DeviceFacts) -> None:
    sizes, dtype = SHAPES[name], PRECISIONS[precision]
    chosen = leakypar.plan(*sizes, dtype=dtype, device=device, tf32=True)
    expected = predicted(name, precision, device)
    assert (chosen.forward == "project_scan") == (expected["project_scan_us"] <= expected["chunked_us"])
    # Nothing is predicted to beat the memory: x is read once, and spikes are written once.
    T, N, C, H = sizes
    moved = T * N * (C + H) * dtype.itemsize / device.bytes_per_second * 1e6
    assert min(expected["project_scan_us"], expected["chunked_us"]) > moved


@needs_extension
def test_the_page_has_the_predictions_of_the_code() -> None:
    page = predictions.PAGE.read_text(encoding="utf-8")
    assert predictions.rewritten(page) == page, "python -m tools.predictions rewrites it"


@needs_extension
def test_longer_sequences_cost_more() -> None:
    sizes = {"N": 8, "C": 256, "H": 1024, "precision": "bfloat16"}
    costs = [extension().predict(T=T, **sizes, facts=H100) for T in (256, 1024, 4096, 16384)]
    for shorter, longer in pairwise(costs):
        for which in ("project_scan_us", "chunked_us"):
            assert shorter[which] < longer[which] < 4.1 * shorter[which]


@needs_extension
def test_the_plan_names_project_scan() -> None:
    sizes = SHAPES["streaming"]
    assert leakypar.plan(*sizes, dtype=torch.bfloat16, device=H100)[:3] == ("project_scan", "look_back", sizes[0])
    assert leakypar.plan(*sizes, dtype=torch.float32, device=H100, tf32=False).forward == "look_back"
    assert leakypar.plan(*sizes, dtype=torch.float64, device=H100).forward != "project_scan"
    # A long product is the vendor's; so is everything on a device whose facts are not known, and on the CPU.
    assert leakypar.plan(*SHAPES["square"], dtype=torch.bfloat16, device=H100).forward == "sequential"
    for unknown in ("shared_bytes_of_block", "clock_khz", "bytes_per_second"):
        device = H100._replace(**{unknown: 0})
        assert leakypar.plan(*sizes, dtype=torch.bfloat16, device=device).forward == "look_back", unknown
    assert leakypar.plan(*sizes, dtype=torch.bfloat16, device="cpu").forward == "sequential"
    assert launch_plan.request("project_scan") == ("project_scan", *[None] * 6)


@needs_extension
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_tells_the_tiles_and_can_be_forced_as_read(name: str, precision: str) -> None:
    dtype = PRECISIONS[precision]
    chosen = leakypar.plan(*SHAPES[name], dtype=dtype, device=H100, tf32=True)
    if chosen.forward != "project_scan":
        assert chosen.tiles is None
        return
    assert chosen.tiles is not None
    detailed = predicted(name, precision, H100)
    assert chosen.tiles._asdict() == {field: detailed[field] for field in leakypar.Tiles._fields}
    assert launch_plan.request(chosen) == (*chosen[:4], tuple(map(int, chosen.tiles)), 0, 0)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(
    ("columns", "batch_rows", "stages", "blocks"),
    [(64, 1, 2, 3), (64, 8, 4, 1), (128, 2, 3, 2), (128, 4, 2, 100), (128, 1, 4, 1)],
)
def test_forced_tiles(
    emulated_project_scan: Implementation, columns: int, batch_rows: int, stages: int, blocks: int, resident: bool
) -> None:
    """Whatever the tiles are, the results are those of the specification; and no call uses others unseen."""
    problem = draw(150, 5, 200, 24, dtype=torch.bfloat16)
    plan = leakypar.Plan(
        "project_scan", "look_back", 150, 150, leakypar.Tiles(columns, batch_rows, stages, resident, blocks)
    )
    with torch.no_grad():
        ours = leakypar.leaky_parallel(**problem.arguments(), plan=plan, return_membrane=True, return_state=True)
        theirs = emulated_project_scan.run(**problem.arguments())
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    assert (ours[0] != theirs[0]).double().mean().item() < 0.01


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ([128, 1, 2, 1], "tiles has 4 values, expected columns, batch_rows, stages, weights_resident, time_blocks"),
        ([32, 1, 2, 1, 1], "tiles has columns 32, expected one of 64, 128"),
        ([64, 5, 2, 1, 1], "tiles has batch_rows 5, expected one of 1, 2, 4, 8"),
        ([64, 1, 0, 1, 1], "tiles has stages 0, expected one of 1, 2, 3, 4"),
        ([64, 1, 1, 1, 1], "tiles has stages 1, expected 2 or more where C = 2048 takes 32 k-slices"),
        ([64, 1, 2, 2, 1], "tiles has weights_resident 2, expected one of 0, 1"),
        ([64, 1, 2, 1, 0], "tiles has time_blocks 0, expected 1 or more"),
        (
            [64, 1, 2, 1, 1],
            "tiles of columns 64, .* take [0-9]+ bytes of shared memory, a block of the device has [0-9]+",
        ),
    ],
)
def test_wrong_tiles_are_named(emulated_project_scan: Implementation, forced: list[int], message: str) -> None:
    problem = draw(5, 2, 2048, 4, dtype=torch.bfloat16)
    given = [value.detach() for value in (problem.x, problem.weight, problem.decay, problem.threshold, problem.gain)]
    x, weight, *neurons = given
    decay, threshold, gain = neurons
    raw = [x, weight, decay, None, None, threshold, gain, None, None, None, 0.0, 1.0, 0.0]
    raw += [ops.SPIKES, False, "project_scan", None]
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops._library.forward.default(*raw, forced, None, False)
