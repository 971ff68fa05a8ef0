"""Benchmarks of ``leakypar``.

``python -m benchmarks`` checks, times and writes a CSV; ``python -m benchmarks.gpu`` does all that a GPU is needed for.
"""
