"""Four motions by a watch's accelerometer and gyroscope, 100 steps. ``docs/basic_motions.md`` has the results.

pip install aeon
python -m examples.basic_motions
"""

from __future__ import annotations

from examples.time_series import Settings, main

if __name__ == "__main__":
    main("BasicMotions", "basic_motions", Settings(noise=0.2, batch=8))
