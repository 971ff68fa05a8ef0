"""The floor: ``nn.Linear`` alone, the price of the projection that every spiking layer pays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.bounds import Kernel, linear_kernels
from benchmarks.implementations.base import Implementation, Layer, present, register
from benchmarks.problem import Problem
from benchmarks.shapes import Shape


class LinearLayer(Layer):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        parameters = problem.parameters
        self.linear = nn.Linear(problem.shape.C, problem.shape.H, device=problem.device, dtype=parameters.weight.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(parameters.weight)
            self.linear.bias.copy_(parameters.bias_ih)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y

    def gradients(self) -> dict[str, Tensor]:
        return present(weight=self.linear.weight.grad, bias_ih=self.linear.bias.grad)


@register()
class Linear(Implementation):
    name = "nn.Linear"
    function = "the projection alone"

    def kernels(self, shape: Shape, pass_: str) -> tuple[Kernel, ...]:
        return linear_kernels(shape, pass_)

    def build(self, problem: Problem) -> Layer:
        return LinearLayer(problem)
