"""Builds a wheel or an sdist into dist/, and checks it as someone who installs it would: `make wheel`, `make sdist`.

`twine check` reads its metadata, `auditwheel show` tells which systems a wheel runs on, an sdist must hold every file
of the repository that the README links to or that a build reads, and each is installed into a fresh environment, where
a layer runs. That environment sees the torch that is installed here, and no leakypar but the one under test.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"

# Files that only the repository itself needs.
NOT_SHIPPED = (".ci/", ".gitignore")

TRIAL = """
import sys, torch, leakypar
from pathlib import Path
assert Path(sys.prefix) in Path(leakypar.__file__).parents, leakypar.__file__
info = leakypar.build_info()
print(info)
assert info.remedy is None, info.reason
backends = ["auto"] if info.variant == "python" else ["auto", "fused"]
for backend in backends:
    layer = leakypar.LeakyParallel(7, 5, beta=0.9, learn_beta=True, backend=backend)
    spikes = layer(torch.rand(9, 2, 7))
    assert spikes.shape == (9, 2, 5)
    spikes.sum().backward()
    assert layer.rnn.weight_hh_l0.grad.shape == (5, 5)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, cwd=cwd, check=True)


def linked(readme: str) -> set[str]:
    """The files of the repository that a page in Markdown links to."""
    targets = re.findall(r"\]\(([^)#\s]+)", readme)
    return {target for target in targets if not re.match(r"[a-z]+:", target)}


def lacking(shipped: set[str], tracked: set[str], readme: str) -> set[str]:
    """What an sdist should hold and does not."""
    return (linked(readme) | {name for name in tracked if not name.startswith(NOT_SHIPPED)}) - shipped


def files_in(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def check_contents(sdist: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = lacking(files_in(sdist), set(filter(None, tracked.split("\0"))), (ROOT / "README.md").read_text("utf-8"))
    if missing:
        sys.exit(f"{sdist.name} lacks {', '.join(sorted(missing))}: see MANIFEST.in")


def try_in_a_fresh_environment(artifact: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        # What lies there is found, but no .pth file of it is read, such as that of an editable leakypar.
        (packages / "beside.pth").write_text(f"{sysconfig.get_path('platlib')}\n")
        python = Path(folder, "bin", "python")
        installed = ["--no-build-isolation", "--no-deps", "--no-cache-dir", "--force-reinstall", artifact]
        run(sys.executable, "-m", "pip", "--quiet", "--python", python, "install", *map(str, installed))
        run(python, "-c", TRIAL, cwd=Path(folder))


def newest(pattern: str) -> Path:
    return max(DIST.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def wheel() -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", DIST, ".")
    built = newest("leakypar-*.whl")
    if not built.name.endswith("-any.whl"):
        run(sys.executable, "-m", "auditwheel", "show", built)
    return built


def sdist() -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", DIST, ".")
    built = newest("leakypar-*.tar.gz")
    check_contents(built)
    return built


def main(arguments: Sequence[str]) -> int:
    makers = {"wheel": wheel, "sdist": sdist}
    if not arguments or not set(arguments) <= makers.keys():
        sys.exit("usage: python -m tools.distribution wheel|sdist ...")
    for kind in arguments:
        built = makers[kind]()
        run(sys.executable, "-m", "twine", "check", "--strict", built)
        try_in_a_fresh_environment(built)
        print(f"{built.relative_to(ROOT)}: built, checked, installed, tried")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
