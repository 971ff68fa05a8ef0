"""``python -m benchmarks.training_steps DEVICE TxNxCxH METHOD...``: bfloat16 training steps for a profiler to watch."""

import sys
from typing import Any

import torch

import leakypar
from benchmarks.shapes import parse_shapes

device, sizes, *methods = sys.argv[1:]
(shape,) = parse_shapes(sizes)
x = (torch.rand(shape.T, shape.N, shape.C, device=device) < 0.2).bfloat16().requires_grad_()
for method in methods:
    options: dict[str, Any] = {"plan": method, "device": device, "dtype": torch.bfloat16}
    layer = leakypar.LeakyParallel(shape.C, shape.H, beta=0.9, backend="fused", **options)
    for _ in range(2):  # the first of each method loads its module
        layer(x).sum().backward()
if x.is_cuda:
    torch.cuda.synchronize()
