"""The digits of train_digits.py over several processes, one for each device, under torchrun.

    torchrun --nproc-per-node 2 examples/train_distributed.py --parallel fsdp --checkpoints /tmp/digits

Every process draws the same batches and trains on its share of each: DistributedDataParallel keeps the whole network
on every device, FSDP2 a part of it. After each epoch the state is written as a distributed checkpoint. Started again,
the program goes on from the newest, also in another number of processes or in the other way of sharing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from digits.data import Digits, SpikingDigits, load_digits, stratified_split  # type: ignore[import-not-found]
from digits.network import Network  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from leakypar import LeakyParallel, ops

CONTRAST = 4.0  # of the firing rates as logits, as in digits/training.py


class Training(Stateful):
    """The network, its optimizer, and the epochs behind it: what a checkpoint keeps."""

    def __init__(self, parallel: str, mesh: DeviceMesh, device: torch.device, seed: int) -> None:
        torch.manual_seed(seed)  # the same first weights everywhere
        backend = "fused" if ops.is_available(device.type) else "rnn"
        # A matrix would have its zeros sent too.
        layer = partial(LeakyParallel, compact_decay=True, backend=backend)
        network = Network(layer).to(device)
        self.network: nn.Module
        if parallel == "fsdp":
            for layer in network.children():
                fully_shard(layer, mesh=mesh)
            self.network = fully_shard(network, mesh=mesh)
        else:
            self.network = DistributedDataParallel(network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=5e-3)
        self.epochs = 0

    def state_dict(self) -> dict[str, Any]:
        network, optimizer = get_state_dict(self.network, self.optimizer)
        return {"network": network, "optimizer": optimizer, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.network, self.optimizer, model_state_dict=state["network"], optim_state_dict=state["optimizer"]
        )
        self.epochs = state["epochs"]

    def resume(self, folder: Path) -> None:
        """From the newest checkpoint in a folder, if there is one. Its metadata is written last."""
        found = [path.parent for path in folder.glob("epoch-*/.metadata")]
        if found:
            newest = max(found, key=lambda path: int(path.name.removeprefix("epoch-")))
            load({"training": self}, checkpoint_id=newest)

    def epoch(self, digits: SpikingDigits, folder: Path) -> float:
        """One epoch, and its checkpoint. Returns the mean loss of this process's share."""
        losses = []
        for x, labels in digits.epoch(self.epochs):
            loss = nn.functional.cross_entropy(self.logits(share(x, 1)), share(labels, 0))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses.append(loss.detach())
        self.epochs += 1
        save({"training": self}, checkpoint_id=folder / f"epoch-{self.epochs}")
        return torch.stack(losses).mean().item()

    @torch.no_grad()
    def accuracy(self, digits: SpikingDigits) -> float:
        """The share of a set that the network reads, counted by all processes."""
        right = [self.logits(share(x, 1)).argmax(1) == share(labels, 0) for x, labels in digits.in_order()]
        joined = torch.cat(right)
        counts = torch.stack([joined.sum(), torch.ones_like(joined).sum()])
        dist.all_reduce(counts)
        return float(counts[0] / counts[1])

    def logits(self, x: Tensor) -> Tensor:
        """Firing rates `[N, 10]` for spikes `[T, N, 784]`."""
        rates: Tensor = self.network(x).mean(0)
        return CONTRAST * rates


def share(batch: Tensor, dim: int) -> Tensor:
    """Every k-th of a batch, for the k processes."""
    step, rank = dist.get_world_size(), dist.get_rank()
    return batch[(slice(None),) * dim + (slice(rank, None, step),)]


def train(options: argparse.Namespace, digits: Digits, device: torch.device) -> Training:
    """Trains until so many epochs are behind the network, those of earlier runs included."""
    train_indices, test_indices = stratified_split(digits.labels, 0.2, options.seed)
    sets = [
        SpikingDigits(digits.take(indices), options.batch_size, options.seed, device)
        for indices in (train_indices, test_indices)
    ]
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    training = Training(options.parallel, mesh, device, options.seed)
    training.resume(options.checkpoints)
    while training.epochs < options.epochs:
        loss = training.epoch(sets[0], options.checkpoints)
        accuracy = training.accuracy(sets[1])
        if dist.get_rank() == 0:
            print(f"epoch {training.epochs}: loss {loss:.3f}, {accuracy:.1%} of the test digits read", flush=True)
    return training


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=100, help="digits of all processes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, default=Path("results/distributed"), help="a folder")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if "RANK" not in os.environ:
        print(f"start it by torchrun: torchrun --nproc-per-node 2 {sys.argv[0]}", file=sys.stderr)
        return 2
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    train(options, load_digits(), device)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
