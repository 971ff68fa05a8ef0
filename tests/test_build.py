"""What is built and linked, what the build decides, and what it tells about itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import ModuleType

import pytest

import leakypar
import toolchain
from leakypar.build_info import BuildInfo, extension
from toolchain import CudaToolkit, Unavailable, decide
from tools import distribution, ptxas_report

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def compiled() -> ModuleType:
    if leakypar.build_info().variant == "python":
        pytest.skip(f"no extension: {leakypar.build_info().reason}")
    return extension()


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


# build_info


def test_what_was_built_loads() -> None:
    record = Path(leakypar.__file__).with_name("_build.json")
    if not record.exists():
        pytest.skip("leakypar was never built here: make build")
    assert leakypar.build_info().variant == json.loads(record.read_text())["variant"], leakypar.build_info().reason


def test_build_info_tells_the_facts(compiled: ModuleType) -> None:
    info = leakypar.build_info()
    assert info.version == leakypar.__version__
    assert info.reason
    assert re.match(r"(GCC|Clang) \d+", info.compiler or "")
    assert re.match(r"2\.\d+", info.torch_version or "")
    assert info.stable_abi_target == ".".join(map(str, toolchain.OLDEST_TORCH))
    if info.variant == "cuda":
        assert re.fullmatch(r"\d+\.\d+", info.cuda_version or "")
        assert all(re.fullmatch(r"\d+\.\da?(\+PTX)?", architecture) for architecture in info.architectures)
        assert info.architectures
    else:
        assert (info.cuda_version, info.architectures) == (None, ())


def test_build_info_is_one_frozen_value_and_reads_well() -> None:
    info = leakypar.build_info()
    assert info is leakypar.build_info()
    with pytest.raises(FrozenInstanceError):
        info.variant = "cuda"  # type: ignore[misc]
    table = str(BuildInfo("1.0", "cuda", "because", architectures=("8.0", "9.0+PTX")))
    assert re.search(r"^architectures +8\.0 9\.0\+PTX$", table, flags=re.MULTILINE)
    assert "None" not in table


# What the sources include and the binary links


def includes(path: Path) -> list[str]:
    return re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)[>\"]", path.read_text(), flags=re.MULTILINE)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / "csrc" / folder).glob("*")) if path.is_file()]


@pytest.mark.parametrize("path", sources(".", "math", "cpu", "cuda"), ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_stops_at_its_folder(path: Path) -> None:
    assert [name for name in includes(path) if re.match(r"(torch|ATen|c10|pybind11)/", name)] == []


@pytest.mark.parametrize("path", sources("torch"), ids=lambda path: path.name)
def test_only_stable_torch_headers_are_included(path: Path) -> None:
    stable = r"torch/csrc/stable/|torch/headeronly/|torch/csrc/inductor/aoti_torch/(c/shim|generated/c_shim_cpu)\.h$"
    foreign = [name for name in includes(path) if re.match(r"(torch|ATen|c10)/", name) and not re.match(stable, name)]
    assert foreign == []
    assert any(name.startswith("pybind11/") for name in includes(path)) == (path.name == "module.cpp")


def test_module_includes_no_torch_header() -> None:
    assert [name for name in includes(ROOT / "csrc/torch/module.cpp") if name.startswith("torch/")] == []


def unportable(symbols: list[str]) -> list[str]:
    """Symbols that some torch lacks: those of CUDA builds, and C++ names of at, c10 and torch (their ABI changes)."""
    everywhere = {"aoti_torch_device_type_cuda"}  # a number, which every build knows
    return [
        name
        for name in symbols
        if ("cuda" in name.lower() and name not in everywhere) or re.match(r"_Z\w*?(2at|3c10|5torch)\d", name)
    ]


def test_unportable_symbols_are_recognised() -> None:
    stable = [
        "aoti_torch_get_dim",
        "aoti_torch_device_type_cuda",
        "torch_call_dispatcher",
        "PyLong_FromLong",
        "_ZNSt9exceptionD2Ev",
        "memcpy",
    ]
    assert unportable(stable) == []
    others = [
        "aoti_torch_get_current_cuda_stream",
        "cudaLaunchKernel",
        "_ZN3c104cuda20getCurrentCUDAStreamEa",
        "_ZNK2at6Tensor4sizeEl",
        "_ZN5torch7LibraryC1ENS0_4KindE",
        "_ZTIN3c105ErrorE",
    ]
    assert unportable(others) == others


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_binary_needs_only_what_every_torch_has(compiled: ModuleType) -> None:
    listing = run("nm", "-D", "--undefined-only", str(compiled.__file__)).stdout
    symbols = [line.split()[-1].split("@")[0] for line in listing.splitlines()]
    assert "torch_library_impl" in symbols, "nm did not list the binary's symbols"
    assert unportable(symbols) == []


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf, of binutils")
def test_binary_links_no_library_of_a_cuda_build(compiled: ModuleType) -> None:
    listing = run("readelf", "-d", str(compiled.__file__)).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", listing)
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if re.search(r"cuda|cudart|torch_python|libtorch\.so", name)] == []


# Which variant is built

TOOLKIT = CudaToolkit(Path("cuda"), "13.0", (), ())


def present() -> None:
    pass


def absent() -> None:
    raise Unavailable("no compiler")


def no_toolkit() -> CudaToolkit:
    raise Unavailable("no toolkit")


def a_driver() -> bool:
    return True


def no_driver() -> bool:
    return False


OTHERWISE = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps ."


@pytest.mark.parametrize(
    ("requested", "torch_cuda", "require_extension", "find_toolkit", "find_driver", "variant", "reason", "remedy"),
    [
        ("auto", "13.0", present, lambda: TOOLKIT, no_driver, "cuda", "CUDA 13.0, and a CUDA 13.0 toolkit", None),
        ("native", "13.0", present, lambda: TOOLKIT, a_driver, "cuda", "CUDA 13.0, and a CUDA 13.0 toolkit", None),
        ("native", "13.0", present, lambda: TOOLKIT, no_driver, "cpu", "no NVIDIA driver.*LEAKYPAR_BUILD=cuda", None),
        ("auto", "13.0", present, no_toolkit, a_driver, "cpu", "torch .*CUDA 13.0, but no toolkit", OTHERWISE),
        ("auto", "13.0", present, no_toolkit, no_driver, "cpu", "torch .*CUDA 13.0, but no toolkit", None),
        ("auto", None, present, lambda: TOOLKIT, a_driver, "cpu", "torch .* is a build without CUDA", None),
        ("auto", "13.0", absent, lambda: TOOLKIT, a_driver, "python", "no compiler", OTHERWISE),
        ("native", "13.0", absent, lambda: TOOLKIT, no_driver, "python", "no compiler", OTHERWISE),
        ("python", "13.0", absent, lambda: TOOLKIT, a_driver, "python", "LEAKYPAR_BUILD=python", None),
    ],
)
def test_choice(
    requested: str,
    torch_cuda: str | None,
    require_extension: Callable[[], None],
    find_toolkit: Callable[[], CudaToolkit],
    find_driver: Callable[[], bool],
    variant: str,
    reason: str,
    remedy: str | None,
) -> None:
    decision = decide(requested, lambda: torch_cuda, require_extension, find_toolkit, find_driver)
    assert (decision.variant, decision.remedy) == (variant, remedy)
    assert re.search(reason, decision.reason)
    assert (decision.toolkit is TOOLKIT) == (variant == "cuda")


def test_a_toolkit_of_another_major_version_is_named() -> None:
    assert toolchain.mismatch(TOOLKIT, "13.1") is None
    assert toolchain.mismatch(TOOLKIT, None) is None
    assert "nvcc is of CUDA 13.0, torch of CUDA 12.8" in str(toolchain.mismatch(TOOLKIT, "12.8"))


def test_an_old_setuptools_is_named_in_one_line() -> None:
    program = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    result = run(sys.executable, "-c", program)
    assert result.returncode != 0
    assert result.stderr.strip() == ('leakypar: setuptools 65.5.0 is too old to build it: pip install "setuptools>=77"')


FIRST_USE = """
import json, sys, warnings
from pathlib import Path
import torch, leakypar
build_info = sys.modules["leakypar.build_info"]
if sys.argv[1] == "python":
    sys.modules["leakypar._C"] = None
found = []
for record in sys.argv[2:]:
    build_info._RECORD = Path(record)
    build_info.build_info.cache_clear()
    build_info.warn_of_a_lesser_build.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layers = [leakypar.LeakyParallel(3, 5) for _ in range(2)]
        before = len(caught)
        for layer in layers:
            layer(torch.rand(4, 2, 3))
            layer(torch.rand(4, 2, 3))
    found.append([before, [str(warning.message) for warning in caught], str(leakypar.build_info())])
print(json.dumps(found))
"""


@pytest.mark.parametrize("variant", ["python", "cpu"])
def test_a_lesser_build_says_so_once_at_first_use(variant: str, tmp_path: Path) -> None:
    if variant == "cpu" and leakypar.build_info().variant != "cpu":
        pytest.skip("the CPU extension is not what is built here")
    records = [tmp_path / "without_remedy.json", tmp_path / "with_remedy.json"]
    for record, remedy in zip(records, (None, OTHERWISE), strict=True):
        record.write_text(json.dumps({"variant": variant, "reason": "no compiler", "remedy": remedy}))
    result = run(sys.executable, "-c", FIRST_USE, variant, *map(str, records), LEAKYPAR_BACKEND="auto")
    assert result.returncode == 0, result.stderr
    (before, messages, table), (before_with_remedy, messages_with_remedy, table_with_remedy) = json.loads(result.stdout)
    assert before == before_with_remedy == 0
    assert messages == []
    assert "remedy" not in table
    (message,) = messages_with_remedy
    without = {"python": "without its extension", "cpu": "without CUDA kernels"}[variant]
    assert without in message
    assert "no compiler" in message
    assert message.endswith(OTHERWISE)
    assert re.search(rf"^remedy +{re.escape(OTHERWISE)}$", table_with_remedy, flags=re.MULTILINE)


def test_forced_choice_fails_rather_than_falls_back() -> None:
    with pytest.raises(Unavailable, match="no compiler"):
        decide("cpu", lambda: None, absent, lambda: TOOLKIT)
    with pytest.raises(Unavailable, match="no compiler"):
        decide("cuda", lambda: "13.0", absent, lambda: TOOLKIT)
    with pytest.raises(Unavailable, match="no toolkit"):
        decide("cuda", lambda: "13.0", present, no_toolkit)
    with pytest.raises(ValueError, match="LEAKYPAR_BUILD.*'gpu'"):
        decide("gpu", lambda: "13.0", present, lambda: TOOLKIT)


def test_forced_choice_is_taken() -> None:
    assert decide("cuda", lambda: None, present, lambda: TOOLKIT).toolkit is TOOLKIT
    assert decide("cpu", lambda: "13.0", present, lambda: TOOLKIT).variant == "cpu"
    assert decide("python", lambda: "13.0", present, lambda: TOOLKIT).variant == "python"


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A CUDA toolkit whose nvcc only describes it, and bin/nvcc, a wrapper of that nvcc that lies elsewhere."""
    root = tmp_path / "cuda-99.1"
    for folder, name in (("bin", "nvcc"), ("target/include", "cuda_runtime.h"), ("target/lib", "libcudart_static.a")):
        (root / folder).mkdir(parents=True)
        (root / folder / name).touch()
    (root / "bin/nvcc").write_text(
        f"""#!/bin/sh
case "$1" in
  --version) echo 'Cuda compilation tools, release 99.1, V99.1.7' ;;
  --dryrun)
    echo '#$ TOP={root}/bin/..' >&2
    echo '#$ INCLUDES="-I{root}/bin/../target/include"  ' >&2
    echo '#$ LIBRARIES=  "-L{root}/bin/../target/lib/stubs" "-L{root}/bin/../target/lib"' >&2 ;;
esac
"""
    )
    wrapper = tmp_path / "bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {root}/bin/nvcc "$@"\n')
    for executable in (root / "bin/nvcc", wrapper):
        executable.chmod(0o755)
    return root


def test_toolkit_is_found_through_a_wrapper(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{toolkit.parent}/bin:{os.environ['PATH']}")
    target = toolkit / "target"
    expected = CudaToolkit(toolkit, "99.1", (target / "include",), (target / "lib",))
    assert toolchain.find_cuda_toolkit() == expected
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert toolchain.find_cuda_toolkit() == expected


def test_incomplete_toolkits_are_refused(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    (toolkit / "target/lib/libcudart_static.a").unlink()
    with pytest.raises(Unavailable, match=r"libcudart_static\.a is not in .*target/lib"):
        toolchain.find_cuda_toolkit()
    (toolkit / "bin/nvcc").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(Unavailable, match="does not run: .*exit status 3"):
        toolchain.find_cuda_toolkit()
    (toolkit / "bin/nvcc").unlink()
    with pytest.raises(Unavailable, match="CUDA_HOME is .*does not exist"):
        toolchain.find_cuda_toolkit()


def test_compilers_are_tried() -> None:
    with pytest.raises(Unavailable, match="'no-such-compiler' does not run"):
        toolchain.check_cxx_compiler("no-such-compiler")
    with pytest.raises(Unavailable, match="'false' cannot compile"):
        toolchain.check_cxx_compiler("false")


def test_architectures_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert toolchain.architectures() == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    assert toolchain.architectures() == toolchain.DEFAULT_ARCHITECTURES
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert toolchain.architectures() == "9.0"


def test_what_a_build_needs_is_said_once() -> None:
    """The others read pyproject.toml; what people read, and the build in isolation, repeats it."""
    project = (ROOT / "pyproject.toml").read_text()
    oldest = f"torch>={'.'.join(map(str, toolchain.OLDEST_TORCH))}"
    assert project.count(f'"{oldest}"') == 2
    install = re.search(r"^pip install (.*pybind11.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert install is not None
    assert set(toolchain.build_requirements()) - {oldest} <= {word.strip('"') for word in install[1].split()}


# setup.py itself, on a tree of the same form with sources that compile in no time

MODULE = """#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "toolchain.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    contents = {
        "README.md": "",
        "LICENSE": "",
        "leakypar/__init__.py": "",
        "leakypar/version.py": '__version__ = "0.1.0"\n',
        "csrc/shared.h": "",
        "csrc/cpu/scan_forward.cpp": '#include "../shared.h"\n',
        "csrc/cpu/scan_backward.cpp": "",
        "csrc/cuda/scan_forward.cu": '#include "../shared.h"\n__global__ void kernel() {}\n',
        "csrc/cuda/scan_backward.cu": "",
        "csrc/torch/ops.cpp": "",
        "csrc/torch/cuda_context.cpp": "",
        "csrc/torch/module.cpp": MODULE,
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def setup(tree: Path, variant: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"LEAKYPAR_BUILD": variant, "TORCH_CUDA_ARCH_LIST": "9.0", **environment}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=tree, env=os.environ | environment, capture_output=True, text=True)


def objects(tree: Path) -> dict[str, int]:
    found = tree.glob("build/*/objects/**/*.o")
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in found}


def builds_cuda() -> bool:
    """Whether there is a toolkit, and a compiler that it is sure to take: it refuses a Clang newer than itself."""
    if "clang" in os.environ.get("CXX", ""):
        return False
    try:
        toolchain.find_cuda_toolkit()
    except Unavailable:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ninja") is None, reason="needs ninja")
def test_only_what_was_touched_is_compiled_again(small_tree: Path) -> None:
    variant, folder, suffix = ("cuda", "cuda", "cu") if builds_cuda() else ("cpu", "cpu", "cpp")
    built = setup(small_tree, variant)
    assert built.returncode == 0, built.stdout + built.stderr
    assert f"leakypar: building the {variant.upper()} extension\nbecause: LEAKYPAR_BUILD={variant}\n" in built.stderr
    assert json.loads((small_tree / "leakypar/_build.json").read_text())["variant"] == variant
    assert len(list((small_tree / "leakypar").glob("_C.*.so"))) == 1
    first = objects(small_tree)
    assert len(first) == (7 if variant == "cuda" else 4)

    for touched in (f"csrc/{folder}/scan_backward.{suffix}", "csrc/shared.h"):  # which scan_forward alone includes
        (small_tree / touched).touch()
    assert setup(small_tree, variant).returncode == 0
    second = objects(small_tree)
    recompiled = {name for name in second if second[name] != first[name]}
    assert recompiled == {f"{folder}/scan_backward.o", f"{folder}/scan_forward.o", "cpu/scan_forward.o"}


@pytest.mark.slow
def test_a_forced_build_fails_without_a_compiler_and_auto_goes_on(small_tree: Path) -> None:
    stale = small_tree / "leakypar/_C.cpython-311-x86_64-linux-gnu.so"
    stale.touch()
    failed = setup(small_tree, "cpu", CXX="no-such-compiler")
    assert failed.returncode != 0
    assert "cannot build what LEAKYPAR_BUILD asks for" in failed.stderr
    assert "no-such-compiler" in failed.stderr
    assert stale.exists()

    fallen_back = setup(small_tree, "auto", CXX="no-such-compiler")
    assert fallen_back.returncode == 0, fallen_back.stderr
    assert (
        "leakypar: building the pure-Python package\nbecause: the C++ compiler 'no-such-compiler'" in fallen_back.stderr
    )
    assert json.loads((small_tree / "leakypar/_build.json").read_text())["variant"] == "python"
    assert not stale.exists()


# The sdist


def test_the_sdist_holds_what_the_readme_links_to() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = distribution.linked(readme)
    assert {"docs/cpu.md", "docs/kernels.md", "docs/scaling.md"} <= links
    assert [link for link in links if not (ROOT / link).exists()] == []
    shipped = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}
    assert distribution.lacking(shipped - {"docs/cpu.md"}, set(), readme) == {"docs/cpu.md"}
    assert distribution.lacking(shipped - {"setup.py"}, {"setup.py", ".ci/run"}, readme) == {"setup.py"}
    manifest = (ROOT / "MANIFEST.in").read_text()
    named = re.findall(r"^(?:graft|include) (.+)$", manifest, flags=re.MULTILINE)
    assert {link.split("/")[0] for link in links} <= {name for line in named for name in line.split()}


# The register report

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8leakypar4cuda12_GLOBAL__N_14scanIfLi4EEEvNS_3RunIT_EE' for 'sm_90'
ptxas info    : Function properties for _ZN8leakypar4cuda12_GLOBAL__N_14scanIfLi4EEEvNS_3RunIT_EE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 721.617 ms
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    1392 bytes stack frame, 2184 bytes spill stores, 2296 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 1392 bytes cumulative stack size
"""


def test_report_reads_what_ptxas_prints() -> None:
    scan, plain = ptxas_report.parse(LOG)
    assert (scan.architecture, scan.registers, scan.shared_bytes, scan.stack_bytes, scan.spill_bytes) == (
        "sm_90",
        64,
        128,
        0,
        0,
    )
    assert plain == ptxas_report.KernelUse("plain", "sm_90", 32, 0, 1392, 2184 + 2296)


def test_report_refuses_a_log_it_does_not_understand() -> None:
    with pytest.raises(ValueError, match="announced 2 kernels, and the use of 1 was understood"):
        ptxas_report.parse(LOG.replace("Used 32 registers", "Occupies 32 registers"))
    with pytest.raises(ValueError, match="announced 0 kernels"):
        ptxas_report.parse("")


def test_report_is_a_row_per_kernel_and_a_column_per_architecture() -> None:
    scan, plain = ptxas_report.parse(LOG)
    newer = replace(plain, architecture="sm_120", registers=40, spill_bytes=0)
    header, *rows = (line.split() for line in ptxas_report.table([newer, scan, plain]).splitlines())
    assert header == ["kernel", "sm_90", "sm_120", "shared", "stack", "spills"]
    assert rows[0] == ["plain", "32", "40", "0", "1392", "4480"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void leakypar::cuda::(anonymous namespace)::scan<float, 4>(leakypar::Run<float>)", "scan<float, 4>"),
        ("void leakypar::cuda::scan<leakypar::bfloat16, (leakypar::Scan)1>(int)", "scan<bfloat16, (Scan)1>"),
        ("plain", "plain"),
    ],
)
def test_kernel_names_are_short(name: str, short: str) -> None:
    assert ptxas_report.shorten(name) == short


def test_report_fails_on_spills(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(ptxas_report, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(ptxas_report, "compile_verbosely", lambda nvcc, source, architecture: LOG)
    assert ptxas_report.main(["kernels.cu"]) == 1
    assert "error: plain spills 4480 bytes on sm_90" in capsys.readouterr().err
    clean = LOG.replace("2184 bytes spill", "0 bytes spill").replace("2296 bytes spill", "0 bytes spill")
    monkeypatch.setattr(ptxas_report, "compile_verbosely", lambda nvcc, source, architecture: clean)
    assert ptxas_report.main(["kernels.cu"]) == 0
