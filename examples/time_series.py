"""What the examples on recorded time series share: the data, the network, its training, and the table of results.

The data sets are in the wheel of the package `aeon` (the extra `examples`): nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import leakypar
from leakypar import LeakyParallel

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 5


@dataclass(frozen=True)
class Sequences:
    """A set of sequences, padded with zeros to one length.

    Attributes:
        x: `[T, N, C]`.
        lengths: `[N]`, int64.
        labels: `[N]`, int64, from 0.
    """

    x: Tensor
    lengths: Tensor
    labels: Tensor

    @property
    def valid(self) -> Tensor:
        """1 at the steps of each sequence and 0 beyond, `[T, N, 1]`."""
        return (torch.arange(len(self.x)).unsqueeze(1) < self.lengths).unsqueeze(2).float()

    def take(self, which: Tensor) -> Sequences:
        return Sequences(self.x[:, which], self.lengths[which], self.labels[which])


def load(name: str) -> tuple[Sequences, Sequences]:
    """The training and the test set, as the archive splits them."""
    from aeon.datasets import load_classification

    parts = [load_classification(name, split=split) for split in ("train", "test")]
    classes = sorted(set(parts[0][1]))
    longest = max(series.shape[1] for x, _ in parts for series in x)
    sets = []
    for x, y in parts:
        padded = torch.zeros(longest, len(x), x[0].shape[0])
        for i, series in enumerate(x):
            padded[: series.shape[1], i] = torch.as_tensor(series, dtype=torch.float32).T
        lengths = torch.tensor([series.shape[1] for series in x])
        sets.append(Sequences(padded, lengths, torch.tensor([classes.index(label) for label in y])))
    return sets[0], sets[1]


def prepared(sets: tuple[Sequences, Sequences]) -> tuple[Sequences, Sequences]:
    """Each feature and its difference from the step before, of mean 0 and variance 1 in the training set."""
    found = []
    for each in sets:
        change = torch.zeros_like(each.x)
        change[1:] = each.x.diff(dim=0) * each.valid[1:]
        found.append(torch.cat([each.x, change], 2))
    valid = sets[0].valid
    center = found[0].sum((0, 1)) / valid.sum()
    spread = ((found[0] - center) * valid).square().sum((0, 1)).div(valid.sum()).sqrt()
    first, second = (
        Sequences((x - center) / spread * each.valid, each.lengths, each.labels)
        for x, each in zip(found, sets, strict=True)
    )
    return first, second


@dataclass(frozen=True)
class Settings:
    """How a network is made and trained.

    The defaults, of the network with a readout, were chosen by cross-validation within JapaneseVowels' training set.

    Attributes:
        readout: a linear readout of the rates of all layers, of prepared features; else the class is the neuron of the
            last layer that spikes most, and the features are as they were recorded.
        hidden: neurons of a hidden layer.
        depth: layers of neurons.
        rate: what `init.firing_rate_` is asked for.
        dropout: of the layers.
        noise: standard deviation of what is added to the features in training.
        smoothing: of the labels.
        learning_rate: of AdamW at its highest, in one cycle.
        weight_decay: of AdamW.
        epochs: passes over the training set.
        batch: sequences in a step.
    """

    readout: bool = True
    hidden: int = 128
    depth: int = 2
    rate: float = 0.25
    dropout: float = 0.2
    noise: float = 0.6
    smoothing: float = 0.1
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    epochs: int = 40
    batch: int = 27


STACK = Settings(False, depth=3, rate=0.15, dropout=0, noise=0, smoothing=0, learning_rate=1e-3, epochs=20)


@dataclass(frozen=True)
class Neurons:
    """One row of the table.

    Attributes:
        name: of the row.
        beta: first and last of the neurons' initial decays, or one for all, or None for the constructor's own.
        from_data: whether `init.firing_rate_` scales the weights first.
        bounds: of the membrane.
        stack: whether the network is the plain stack, rather than the one with a readout.
    """

    name: str
    beta: tuple[float, float] | float | None = (0.5, 0.97)
    from_data: bool = True
    bounds: tuple[float, float] = (0.0, math.inf)
    stack: bool = False


NEURONS = (
    Neurons("stack, the default: `beta=None`", None, from_data=False, stack=True),
    Neurons("stack, `beta=None`, `firing_rate_`", None, stack=True),
    Neurons("stack, `beta=0.9`", 0.9, from_data=False, stack=True),
    Neurons("stack, `beta=0.9`, `firing_rate_`", 0.9, stack=True),
    Neurons("readout, clipped: `(0, inf)`"),
    Neurons("readout, bounded: `(0, 2)`", bounds=(0.0, 2.0)),
    Neurons("readout, bounded: `(-1, 2)`", bounds=(-1.0, 2.0)),
    Neurons("readout, unclipped: `(-inf, inf)`", bounds=(-math.inf, math.inf)),
)


class Network(nn.Module):
    """Layers of spiking neurons; what they say of a class is a count of spikes, or a linear readout of their rates."""

    def __init__(self, features: int, classes: int, neurons: Neurons, settings: Settings) -> None:
        super().__init__()
        sizes = [features, *[settings.hidden] * settings.depth]
        if not settings.readout:
            sizes[-1] = classes
        self.layers = nn.ModuleList(
            LeakyParallel(
                C,
                H,
                beta=torch.linspace(*neurons.beta, H) if isinstance(neurons.beta, tuple) else neurons.beta,
                learn_beta=True,
                dropout=settings.dropout,
                compact_decay=True,
                membrane_bounds=neurons.bounds,
                backend="fused",
            )
            for C, H in pairwise(sizes)
        )
        self.readout = nn.Linear(sum(sizes[1:]), classes) if settings.readout else None

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        counts = []
        for layer in self.layers:
            x = layer(x, lengths=lengths)
            counts.append(x.sum(0))
        logits: Tensor = counts[-1]
        if self.readout is not None:
            logits = self.readout(torch.cat(counts, 1) / lengths.unsqueeze(1))
        return logits


def train(network: Network, data: Sequences, settings: Settings) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(data.labels) / settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    network.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(data.labels))
        for first in range(0, len(order), settings.batch):
            part = data.take(order[first : first + settings.batch])
            x = part.x + settings.noise * torch.randn_like(part.x)
            loss = F.cross_entropy(network(x, part.lengths), part.labels, label_smoothing=settings.smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: Network, data: Sequences) -> float:
    network.eval()
    found: Tensor = network(data.x, data.lengths).argmax(1)
    return (found == data.labels).float().mean().item()


def run(neurons: Neurons, seed: int, sets: tuple[Sequences, Sequences], settings: Settings) -> dict[str, Any]:
    """One network: a row of the CSV file. Rates are of the training set, before and after training."""
    torch.manual_seed(seed)
    data, test = sets
    network = Network(data.x.shape[2], int(data.labels.max()) + 1, neurons, settings)
    if neurons.from_data:
        leakypar.init.firing_rate_(network, data.x, settings.rate, lengths=data.lengths)
    row: dict[str, Any] = {"neurons": neurons.name, "seed": seed}
    row["parameters"] = sum(each.numel() for each in network.parameters())
    for when in ("before", "after"):
        if when == "after":
            train(network, data, settings)
        found = leakypar.firing_rates(network, data.x, lengths=data.lengths)
        for what in ("rate", "silent", "saturated"):
            row[f"{what} {when}"] = round(mean(getattr(each, what) for each in found), 4)
    row["accuracy"] = round(accuracy(network, test), 6)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of a CSV file as Markdown: means over the seeds, and the spread of the accuracy."""
    lines = [
        "| neurons | accuracy, mean | standard deviation | least | firing rate | silent | saturated |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["neurons"] for row in rows):
        of = [row for row in rows if row["neurons"] == name]
        found = [float(row["accuracy"]) for row in of]
        cells = [f"{mean(found):.1%}", f"{stdev(found):.1%}", f"{min(found):.1%}"]
        for what in ("rate", "silent", "saturated"):
            before, after = (mean(float(row[f"{what} {when}"]) for row in of) for when in ("before", "after"))
            cells.append(f"{before:.1%} → {after:.1%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = len({row["seed"] for row in rows})
    most = max(int(row["parameters"]) for row in rows)
    lines += ["", f"{seeds} seeds; at most {most:,} parameters; rates of the training set, before → after training."]
    return "\n".join(lines)


def results(name: str) -> Path:
    return ROOT / "examples" / "results" / f"{name}.csv"


def read(name: str) -> list[dict[str, Any]]:
    with results(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def with_table(page: str, name: str) -> str:
    """A page of the documentation with the table of the results in its place."""
    begin, end = f"<!-- results:{name} -->", "<!-- /results -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"page: expected {begin} and {end} once")
    return pattern.sub(lambda _: f"{begin}\n\n{table(read(name))}\n\n{end}", page)


def measured(data_set: str, settings: Settings, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each kind of neurons and each seed."""
    stack = replace(STACK, batch=settings.batch)
    recorded = load(data_set)
    features = prepared(recorded)
    for neurons in NEURONS:
        for seed in range(seeds):
            yield run(neurons, seed, recorded, stack) if neurons.stack else run(neurons, seed, features, settings)


def main(data_set: str, name: str, settings: Settings, arguments: Sequence[str] | None = None) -> None:
    """Trains every network, and writes the results and the table of the page."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"networks of each kind [{SEEDS}]")
    parser.add_argument("--write", action="store_true", help=f"keep the results, in docs/{name}.md too")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the same sums in the same order on every machine of a kind
    rows = []
    for row in measured(data_set, settings, chosen.seeds):
        rows.append(row)
        print(f"{row['neurons']}, seed {row['seed']}: {row['accuracy']:.1%}, rate {row['rate after']:.1%}", flush=True)
    print(f"\n{table(rows)}" if chosen.seeds > 1 else "")
    if chosen.write:
        results(name).parent.mkdir(exist_ok=True)
        with results(name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        page = ROOT / "docs" / f"{name}.md"
        page.write_text(with_table(page.read_text("utf-8"), name), "utf-8")
