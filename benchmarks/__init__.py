"""Benchmarks of ``leakypar``.

``python -m benchmarks`` checks, times and writes a CSV; ``python -m benchmarks.gpu`` does all that a GPU is needed for.
"""

import os

# The profiler counts the CPU's memory (memory.py). It announces each start on stderr unless told not to, and it reads
# this when torch is first imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
