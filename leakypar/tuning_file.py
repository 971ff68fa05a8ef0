"""Plans that were measured, kept for later processes in a file of JSON: see `leakypar.tuning`.

An entry is found by the device's name and facts, the versions of leakypar and torch, the precision, the direction, C,
H, and T and N within a factor of two. Processes write one at a time, each what it found besides what is there.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import launch_plan
from .build_info import build_info, extension
from .version import __version__

FILE_VARIABLE = "LEAKYPAR_TUNING"
FORMAT = 1


class Candidate(NamedTuple):
    """One way to compute a direction, and what it took.

    Attributes:
        direction: `"forward"` or `"backward"`.
        method: of the direction, as in `Plan`.
        chunk: time steps that are projected at a time.
        chunk_bytes: of the projection that a chunk holds at most, by which other sizes find their steps.
        tiles: of `"project_scan"`, else None.
        microseconds: median of its times; NaN where it could not run.
        gain: the time of the model's choice over this one's: the median over the rounds, or the ratio of the least
            times where that is less, because what else a machine does makes a median too good.
        is_model: whether it is the model's choice.
    """

    direction: str
    method: launch_plan.Method
    chunk: int
    chunk_bytes: int
    tiles: launch_plan.Tiles | None
    microseconds: float
    gain: float
    is_model: bool


def remember(best: Candidate, sizes: Mapping[str, Any], facts: Any) -> None:
    """Lets calls of such sizes with `plan=None` run it, in this process."""
    tiles = None if best.tiles is None else tuple(map(int, best.tiles))
    choice: Any = {"direction": best.direction, "method": best.method, "chunk_bytes": best.chunk_bytes, "tiles": tiles}
    extension().remember(**sizes, facts=facts, **choice)


def _file() -> Path | None:
    """Where plans are kept, or None."""
    chosen = os.environ.get(FILE_VARIABLE)
    if chosen:
        return None if chosen == "off" else Path(chosen)
    try:
        from platformdirs import user_cache_path
    except ImportError:
        return None
    return Path(user_cache_path("leakypar")) / "tuning.json"


@cache
def _processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _name(device: torch.device) -> str:
    return _processor() if device.type == "cpu" else torch.cuda.get_device_name(device)


def _key(entry: Mapping[str, Any]) -> str:
    """What an entry of the file is found by: T and N within a factor of two."""
    octaves = {size: entry[size].bit_length() for size in "TN"}
    names = ("device", "facts", "leakypar", "torch", "precision", "direction", "T", "N", "C", "H")
    return json.dumps([octaves.get(name, entry[name]) for name in names])


def write(best: Iterable[Candidate], sizes: Mapping[str, Any], facts: Any, device: torch.device) -> None:
    """Adds the best candidate of each direction to the file, and takes what others have written there since."""
    path = _file()
    if path is None:
        return
    from filelock import FileLock  # which torch needs too

    here = {"device": _name(device), "facts": list(facts), "leakypar": __version__, "torch": torch.__version__}
    entries = [{**here, **sizes, **each._asdict()} for each in best]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            kept = _taken(path) | {_key(entry): entry for entry in entries}
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            fresh.write_text(json.dumps({"format": FORMAT, "plans": kept}, indent=1), encoding="utf-8")
            fresh.replace(path)
    except OSError as error:
        warnings.warn(f"leakypar: what was measured is kept in this process alone: {error}", stacklevel=4)


def load() -> None:
    """Takes from the file what was measured on this machine by these versions. Importing leakypar does it."""
    path = None if build_info().variant == "python" else _file()
    if path is not None and path.exists():
        _taken(path)


def _taken(path: Path) -> dict[str, Any]:
    """The entries of a file by their keys, those of this machine and these versions remembered.

    None, with a warning, where one of them is wrong, or the file is torn or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT}")
        entries: dict[str, Any] = content["plans"]
        for key, entry in entries.items():
            if _key(entry) != key:
                raise ValueError(f"an entry is not what its key says, {key}")
            # A GPU is known by its facts, which name no device before one is used.
            is_here = entry["facts"][0] or entry["device"] == _processor()
            if is_here and (entry["leakypar"], entry["torch"]) == (__version__, torch.__version__):
                tiles = None if entry["tiles"] is None else launch_plan.Tiles(*entry["tiles"])
                best = Candidate(**{name: entry[name] for name in Candidate._fields})._replace(tiles=tiles)
                remember(best, {name: entry[name] for name in (*"TNCH", "precision")}, tuple(entry["facts"]))
    except FileNotFoundError:
        return {}
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        extension().forget()
        _ignore(path, f"{type(error).__name__}: {error}")
        return {}
    return entries


@cache
def _ignore(path: Path, why: str) -> None:
    warnings.warn(f"leakypar: {path} is ignored: {why}", stacklevel=2)
