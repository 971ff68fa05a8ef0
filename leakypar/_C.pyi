"""The compiled part: csrc/torch/module.cpp. Importing it registers the operators with torch; import torch first."""

from typing import Any, Literal

variant: Literal["cuda", "cpu"]
compiler: str
cuda_version: str | None
architectures: str
stable_abi_target: str

_Method = Literal["sequential", "look_back", "project_scan"]
_Scan = Literal["sequential", "look_back"]
_Direction = Literal["forward", "backward"]
_Facts = tuple[int, int, int, int, int, int, int]

def device_facts(device: int) -> _Facts: ...
def make_plan(
    *,
    T: int,
    N: int,
    C: int,
    H: int,
    precision: str,
    facts: _Facts,
    forward: str | None = None,
    backward: str | None = None,
    gemm_chunk: int | None = None,
    backward_gemm_chunk: int | None = None,
    tiles: tuple[int, ...] | None = None,
    event_rate: float | None = None,
    backward_event_rate: float | None = None,
    recompute: bool = False,
    measured: bool = True,
) -> tuple[_Method, _Scan, int, int, tuple[int, int, int, bool, int] | None, float, float]: ...
def candidates(
    *, T: int, N: int, C: int, H: int, precision: str, facts: _Facts, direction: _Direction
) -> list[tuple[_Method, int, int, tuple[int, int, int, bool, int] | None]]: ...
def remember(
    *,
    T: int,
    N: int,
    C: int,
    H: int,
    precision: str,
    facts: _Facts,
    direction: _Direction,
    method: str,
    chunk_bytes: int,
    tiles: tuple[int, ...] | None,
) -> None: ...
def is_measured(*, T: int, N: int, C: int, H: int, precision: str, facts: _Facts, direction: _Direction) -> bool: ...
def forget() -> None: ...
def check_request(
    forward: str | None,
    backward: str | None,
    gemm_chunk: int | None,
    backward_gemm_chunk: int | None,
    tiles: tuple[int, ...] | None,
    event_rate: float | None,
    backward_event_rate: float | None,
) -> None: ...
def predict(*, T: int, N: int, C: int, H: int, precision: str, facts: _Facts) -> dict[str, Any]: ...
