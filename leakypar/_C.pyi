"""The compiled part: csrc/torch/module.cpp. Importing it registers the operators with torch; import torch first."""

from typing import Any, Literal

variant: Literal["cuda", "cpu"]
compiler: str
cuda_version: str | None
architectures: str
stable_abi_target: str

def device_facts(device: int) -> tuple[int, int, int, int, int, int, int]: ...
def make_plan(
    *, T: int, N: int, C: int, H: int, element_bytes: int, can_fuse: bool, **facts: int
) -> tuple[
    Literal["lane", "split", "fused"], Literal["lane", "split"], int, int, tuple[int, int, int, bool, int] | None
]: ...
def predict(*, T: int, N: int, C: int, H: int, element_bytes: int, **facts: int) -> dict[str, Any]: ...
