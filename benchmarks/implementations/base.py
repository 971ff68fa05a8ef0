"""What an implementation has to say of itself, what several of them share, and the list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.bounds import Kernel, layer_kernels
from leakypar.benchmark import FIRST_LAYER
from leakypar.measuring import Problem, Shape


class Layer(nn.Module, ABC):
    """One built layer: ``forward`` takes ``x [T, N, C]`` and returns ``[T, N, H]``."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Parameter]:
        """Its trained parameters, by the names of :class:`~leakypar.measuring.Parameters`."""

    def gradients(self) -> dict[str, Tensor]:
        """The parameters' gradients after a training step; of a recurrent matrix, its diagonal's."""
        found = {name: part.grad for name, part in self.parts().items() if part.grad is not None}
        return {name: grad.diagonal() if name == "decay" and grad.dim() == 2 else grad for name, grad in found.items()}


class OwnParameters(Layer):
    """One that takes the parameters as they are."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        own = (nn.Parameter(each.clone()) for each in problem.parameters)
        self.weight, self.bias_ih, self.bias_hh, self.decay = own
        self.decay.requires_grad_(problem.learn_decay)

    def parts(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


class Projected(Layer):
    """One that begins with an ``nn.Linear``, its own or another's, whose bias is the sum of both."""

    def __init__(self, problem: Problem, linear: nn.Linear | None = None) -> None:
        super().__init__()
        linear = linear or nn.Linear(problem.shape.C, problem.shape.H)
        self.linear = linear.to(problem.device, problem.parameters.weight.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(problem.parameters.weight)
            self.linear.bias.copy_(problem.parameters.bias_ih + problem.parameters.bias_hh)

    def parts(self) -> dict[str, nn.Parameter]:
        weight, bias = self.linear.parameters()
        return {"weight": weight, "bias_ih": bias}


class Recurrent(Layer):
    """One that has the parameters of an ``nn.RNN``, whose recurrent matrix is diagonal."""

    def adopt(self, rnn: nn.Module, problem: Problem) -> None:
        """Gives ``weight_ih_l0`` and the other parameters of ``rnn`` the problem's values."""
        named = {name.removesuffix("_l0"): parameter for name, parameter in rnn.named_parameters()}
        self.adopted = {"weight": named["weight_ih"], "decay": named["weight_hh"]}
        self.adopted |= {name: named[name] for name in ("bias_ih", "bias_hh")}
        with torch.no_grad():
            for name, value in problem.parameters._asdict().items():
                self.adopted[name].copy_(torch.diag(value) if name == "decay" else value)

    def parts(self) -> dict[str, nn.Parameter]:
        return self.adopted


class Implementation:
    """One column of the results; what it says of itself, in words, goes into its rows.

    Attributes:
        name: The column's name.
        layer: What is built.
        plan: Which of its ways it is made to take; empty where it has one.
        backend: Of ``leakypar``; empty for a rival.
        function: ``"same"`` when it computes the layer, which is checked before it is timed; else what it computes.
        package: What has to be installed beside torch.
        rounds_state: The membrane is rounded at every step to the precision of a product's operands. Ours is not.
        step_by_step: A call walks through time, so that a few steps tell how long all of them take.
    """

    name: str
    layer: Callable[[Problem], Layer]
    plan, backend, function, package = "", "", "same", "torch"
    rounds_state = step_by_step = False

    @property
    def optional(self) -> bool:
        """Whether it runs only when it is asked for by name."""
        return False

    @property
    def label(self) -> str:
        return f"{self.name} ({self.plan})" if self.plan else self.name

    @property
    def columns(self) -> dict[str, str]:
        """What a row says of it."""
        return {"implementation": self.name, "plan": self.plan, "backend": self.backend, "function": self.function}

    @property
    def passes(self) -> tuple[str, ...]:
        """Those that it is timed in."""
        return (FIRST_LAYER, "training") if "recompute" in self.plan else ("forward", FIRST_LAYER, "training")

    def applies(self, device: torch.device) -> bool:
        """Whether it means anything on such a device; where it does not, it is left out without a word."""
        return True

    def unavailable(self, device: torch.device) -> str | None:
        """What it lacks to run here, or None."""
        return None if find_spec(self.package) else f"{self.package} is not installed"

    def unsuited(self, problem: Problem) -> str | None:
        """Why it cannot run this problem though it is there, or None."""
        return None

    def kernels(self, shape: Shape, pass_: str) -> tuple[Kernel, ...]:
        """What its bound is computed from."""
        return layer_kernels(shape, pass_)

    def note(self, problem: Problem) -> str:
        """A remark, such as what a plan resolved to."""
        return ""

    def build(self, problem: Problem) -> Layer:
        """A layer with the problem's parameters, on its device."""
        return self.layer(problem)


registered: list[Implementation] = []
Class = TypeVar("Class", bound=type[Implementation])


def register(*plans: str) -> Callable[[Class], Class]:
    """Adds an implementation, once for each of ``plans`` (none: once)."""

    def add(cls: Class) -> Class:
        for plan in plans or ("",):
            registered.append(cls())
            registered[-1].plan = plan
        return cls

    return add
