"""The compiled part: csrc/torch/module.cpp. Importing it registers the operators with torch; import torch first."""

from typing import Literal

variant: Literal["cuda", "cpu"]
compiler: str
cuda_version: str | None
architectures: str
stable_abi_target: str
cpu_facts: tuple[int, int]  # multiprocessors, cache_bytes

def make_plan(
    *,
    T: int,
    N: int,
    C: int,
    H: int,
    element_bytes: int,
    multiprocessors: int,
    cache_bytes: int,
    shared_bytes_of_block: int,
    shared_bytes_of_multiprocessor: int,
    can_fuse: bool,
) -> tuple[
    Literal["lane", "split", "fused"], Literal["lane", "split"], int, int, tuple[int, int, int, bool, int] | None
]: ...
def make_project_plan(
    *,
    T: int,
    N: int,
    C: int,
    H: int,
    element_bytes: int,
    multiprocessors: int,
    shared_bytes_of_block: int,
    shared_bytes_of_multiprocessor: int,
) -> dict[str, int]: ...
