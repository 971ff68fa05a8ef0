"""What an implementation has to say of itself, and the list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.bounds import PASSES, Kernel, layer_kernels
from benchmarks.problem import Problem
from benchmarks.shapes import Shape


class Layer(nn.Module, ABC):
    """One built layer: ``forward`` takes ``x [T, N, C]`` and returns ``[T, N, H]``."""

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """The parameters' gradients after a training step, by the names of :class:`~benchmarks.problem.Parameters`."""


def present(**gradients: Tensor | None) -> dict[str, Tensor]:
    """Those of ``gradients`` that there are."""
    return {name: grad for name, grad in gradients.items() if grad is not None}


class RecurrentLayer(Layer):
    """One that has the parameters of an ``nn.RNN``, whose recurrent matrix is diagonal."""

    def adopt(self, rnn: nn.Module, problem: Problem) -> None:
        """Gives ``weight_ih_l0`` and the other parameters of ``rnn`` the problem's values."""
        parameters, named = problem.parameters, dict(rnn.named_parameters())
        self.weight_ih, self.weight_hh = named["weight_ih_l0"], named["weight_hh_l0"]
        self.bias_ih, self.bias_hh = named["bias_ih_l0"], named["bias_hh_l0"]
        with torch.no_grad():
            self.weight_ih.copy_(parameters.weight)
            self.weight_hh.copy_(torch.diag(parameters.decay))
            self.bias_ih.copy_(parameters.bias_ih)
            self.bias_hh.copy_(parameters.bias_hh)

    def gradients(self) -> dict[str, Tensor]:
        decay = self.weight_hh.grad
        return present(
            weight=self.weight_ih.grad,
            bias_ih=self.bias_ih.grad,
            bias_hh=self.bias_hh.grad,
            decay=None if decay is None else decay.diagonal(),
        )


class Implementation(ABC):
    """One column of the results.

    Attributes:
        name: The column's name.
        plan: Which of its ways it is made to take; empty where it has one.
        function: ``"same"`` when it computes the layer, which is checked before it is timed; else what it computes.
        rounds_state: The membrane is rounded at every step to the precision of a product's operands, as it is when it
            goes through one. Ours keeps float32.
        step_by_step: A call walks through time, so that a few steps tell how long all of them take.
        optional: It runs only when it is asked for by name.
    """

    name: str
    plan: str = ""
    function: str = "same"
    rounds_state: bool = False
    step_by_step: bool = False
    optional: bool = False

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes that it is timed in; others are left out without a word."""
        return PASSES

    @property
    def label(self) -> str:
        return f"{self.name} ({self.plan})" if self.plan else self.name

    def applies(self, device: torch.device) -> bool:
        """Whether it means anything on such a device; where it does not, it is left out without a word."""
        return True

    def unavailable(self, device: torch.device) -> str | None:
        """What it lacks to run here, for its rows to say, or None."""
        return None

    def unsuited(self, problem: Problem) -> str | None:
        """Why it cannot run this problem though it is there, for its rows to say, or None."""
        return None

    def kernels(self, shape: Shape, pass_: str) -> tuple[Kernel, ...]:
        """What its bound is computed from."""
        return layer_kernels(shape, pass_)

    def note(self, problem: Problem) -> str:
        """A remark for its rows, such as what a plan resolved to."""
        return ""

    @abstractmethod
    def build(self, problem: Problem) -> Layer:
        """A layer with the problem's parameters, on its device."""


_registered: list[Implementation] = []
Class = TypeVar("Class", bound=type[Implementation])


def register(*plans: str) -> Callable[[Class], Class]:
    """Adds an implementation, once for each of ``plans`` (none: once, with the class's own)."""

    def add(cls: Class) -> Class:
        for plan in plans or (cls.plan,):
            implementation = cls()
            implementation.plan = plan
            _registered.append(implementation)
        return cls

    return add


def registered() -> list[Implementation]:
    return list(_registered)
