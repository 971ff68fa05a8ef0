"""Benchmarks of ``leakypar``.

``python -m benchmarks`` checks, times and writes a CSV; ``benchmarks/gpu.sh`` does all that a GPU is needed for.
"""
