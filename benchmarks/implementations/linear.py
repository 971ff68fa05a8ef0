"""The floor: ``nn.Linear`` alone, the price of the projection that every spiking layer pays."""

from __future__ import annotations

from torch import Tensor

from benchmarks.bounds import Kernel, linear_kernels
from benchmarks.implementations.base import Implementation, Projected, register
from leakypar.measuring import Shape


class LinearLayer(Projected):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


@register()
class Linear(Implementation):
    name = "nn.Linear"
    layer = LinearLayer
    function = "the projection alone"

    def kernels(self, shape: Shape, pass_: str) -> tuple[Kernel, ...]:
        return linear_kernels(shape, pass_)
