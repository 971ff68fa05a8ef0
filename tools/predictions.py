"""Rewrites the predictions in docs/kernels.md: what `csrc/plan/cost.h` expects of the benchmark's shapes on an H100.

    python -m tools.predictions

No GPU is needed. A prediction is arithmetic, not a measurement, and the page says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bounds import Ceilings, bound_seconds, layer_kernels
from benchmarks.shapes import SHAPES, Shape
from leakypar.build_info import extension
from leakypar.launch_plan import DeviceFacts

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- predictions -->\n", "<!-- /predictions -->"

H100 = DeviceFacts(
    multiprocessors=132,
    cache_bytes=50 << 20,
    shared_bytes_of_block=227 << 10,
    shared_bytes_of_multiprocessor=228 << 10,
    clock_khz=1_755_000,
    bytes_per_second=3_352 * 10**9,
    capability=90,
)
"""An H100 SXM."""

# What its copies and its matrix products reach, as the design takes them.
CEILINGS = {"bfloat16": (2, Ceilings(3.0e12, 790e12)), "TF32": (4, Ceilings(3.0e12, 400e12))}


def row(shape: Shape, dtype: str) -> str:
    """One line of the table."""
    element_bytes, ceilings = CEILINGS[dtype]
    sizes = {"T": shape.T, "N": shape.N, "C": shape.C, "H": shape.H, "precision": dtype.lower()}
    found: dict[str, Any] = extension().predict(**sizes, facts=H100)
    bound = bound_seconds(layer_kernels(shape, "forward"), element_bytes, ceilings) * 1e6
    projects = found["project_scan_us"] <= found["chunked_us"]
    cells = [
        f"{shape.name} | {dtype}",
        f"{found['columns']}, {found['batch_rows']} | {'stay' if found['weights_resident'] else 'pass'}",
        f"{found['time_blocks']} × {found['teams']} | {found['blocks_per_multiprocessor']}",
        f"{found['project_scan_us']:.0f} | {found['chunked_us']:.0f} | {bound:.1f}",
        f"**project_scan**: {found['project_scan_bound']}" if projects else f"chunked: {found['chunked_bound']}",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> Iterator[str]:
    """The lines of the table."""
    heads = [
        "shape",
        "dtype",
        "columns, rows",
        "weights",
        "blocks × teams",
        "per SM",
        "project_scan",
        "chunked",
        "bound",
    ]
    yield f"| {' | '.join([*heads, 'the plan, and what takes most of its time'])} |"
    yield "|---" * (len(heads) + 1) + "|"
    for dtype in CEILINGS:
        yield from (row(shape, dtype) for shape in SHAPES.values())


def rewritten(page: str) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{PAGE}: expected the lines {BEGIN.strip()} and {END}")
    return f"{before}{BEGIN}{chr(10).join(table())}\n{END}{after}"


def main() -> int:
    """Rewrites the page."""
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.name}: rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
