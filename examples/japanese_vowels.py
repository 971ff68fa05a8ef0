"""Who says it: nine speakers by one vowel, 7 to 29 steps of 12 features. ``docs/japanese_vowels.md`` has the results.

pip install aeon
python -m examples.japanese_vowels
"""

from __future__ import annotations

from examples.time_series import Settings, main

if __name__ == "__main__":
    main("JapaneseVowels", "japanese_vowels", Settings())
