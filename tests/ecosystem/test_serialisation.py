"""What torch.load takes, where it takes weights only, and other ways to keep a layer."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from leakypar import LeakyParallel, Plan, Tiles, surrogate

from ..layers import each_backend


def reloaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


SURROGATES = [
    surrogate.disabled(),
    surrogate.atan(alpha=3.0),
    surrogate.fast_sigmoid(slope=40),
    surrogate.sigmoid(),
    surrogate.straight_through_estimator(),
    surrogate.triangular(),
    surrogate.heaviside(),
    surrogate.spike_rate_escape(beta=2.0),
    surrogate.LSO(),
    surrogate.SFS(B=0.5),
    surrogate.SSO(),
]


@pytest.mark.parametrize("value", SURROGATES, ids=str)
def test_hyperparameters_load_where_only_weights_may(value: surrogate.SurrogateGradient) -> None:
    kept = {"hidden_size": 3, "spike_grad": value}
    assert reloaded(kept) == kept
    assert reloaded(value).parameters == value.parameters


def test_every_surrogate_is_among_them() -> None:
    named = {getattr(surrogate, name) for name in surrogate.__all__}
    classes = {each for each in named if isinstance(each, type)} - {surrogate.SurrogateGradient}
    assert {type(each) for each in SURROGATES} == classes - {surrogate.custom_surrogate}


def test_plans_too() -> None:
    kept = Plan("project_scan", "sequential", 16, 16, Tiles(64, 4, 2, True, 1))
    assert reloaded(kept) == kept
    assert isinstance(reloaded(kept).tiles, Tiles)


def test_a_function_of_ones_own_is_still_refused() -> None:
    with pytest.raises(Exception, match="own_gradient"):
        reloaded(surrogate.custom_surrogate(own_gradient))


def own_gradient(v: torch.Tensor, grad: torch.Tensor, spikes: torch.Tensor) -> torch.Tensor:
    return grad


@each_backend
def test_safetensors_keeps_a_layer(backend: str, tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    layer = LeakyParallel(4, 3, beta=0.9, threshold=0.3, learn_threshold=True, backend=backend)
    path = str(tmp_path / "layer.safetensors")
    safetensors.save_model(layer, path)
    other = LeakyParallel(4, 3, beta=0.5, learn_threshold=True, backend=backend)
    safetensors.load_model(other, path)
    x = torch.randn(6, 2, 4)
    assert torch.equal(other(x), layer(x))
