# `make` lists what there is. Settings, on the command line or in the environment:
#
#   VENV         virtual environment to work in: the active one if it has torch, else .venv (made where it is missing)
#   PYTHON       the Python that makes it                                                          [python3]
#   TORCH        what pip installs where there is no torch yet, such as torch==2.13.0                [torch]
#   LEAKYPAR_BUILD  auto, native, cuda, cpu or python; native: no CUDA kernels where there is no driver  [native]
#   SECONDS      how long fuzz looks                                                               [300]
#   INSTALL=no   take the environment as it is: install nothing, build nothing
#   TESTS        the tests to run                                                                  [tests]
#   OLD, NEW     the CSV files that bench-check compares                    [benchmarks/results/cpu.csv and the quick run]
#   PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS, GPU_ARGS   arguments passed on

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
TORCH ?= torch
TESTS ?= tests
SECONDS ?= 300
export LEAKYPAR_BUILD ?= native
OLD ?= benchmarks/results/cpu.csv
NEW ?= benchmarks/results/cpu-quick.csv
ifneq ($(VIRTUAL_ENV),)
VENV ?= $(or $(shell "$(VIRTUAL_ENV)/bin/python" -c \
  "from importlib.util import find_spec; find_spec('torch') and print('$(VIRTUAL_ENV)')"),.venv)
endif
VENV ?= .venv

bin := $(abspath $(VENV))/bin
python := $(bin)/python
pip := $(python) -m pip --disable-pip-version-check

# torch has ninja print whole command lines; the file that was compiled is what one wants to read.
compile := $(python) setup.py --quiet build_ext --inplace 2>&1 \
  | sed -u -E 's|^(\[[0-9]+/[0-9]+\]) .* -c [^ ]*/(csrc/[^ ]+) .*|\1 \2|'

# A stamp says that a set of dependencies ("test", "demo", ...) is installed in this environment, with leakypar itself.
stamps := build/stamps/$(subst /,_,$(abspath $(VENV)))
built := $(stamps)/.built
needs = $(if $(filter no,$(INSTALL)),,$(addprefix $(stamps)/,$(1)) $(built))

csrc := $(shell find csrc -type f)
cxx_files = $(shell find csrc tests/emulation -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(call needs,demo) ## Train a network on handwritten digits, beside nn.RNN and snntorch
	$(python) examples/train_digits.py $(DEMO_ARGS)

.PHONY: test
test: $(call needs,test) ## Run every test, on every core
	$(bin)/pytest $(TESTS) -n auto --dist worksteal $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: $(call needs,test) ## Draw odd shapes and values for SECONDS, in search of one that an implementation gets wrong
	$(python) -m tests.fuzz --seconds $(SECONDS) $(PYTEST_ARGS)
	$(python) -m tests.fuzz_operators --seconds $(SECONDS)

.PHONY: bench
bench: $(call needs,bench) ## Measure against every rival that is installed, as a table and a CSV
	$(python) -m benchmarks $(BENCH_ARGS)

.PHONY: bench-growth
bench-growth: $(call needs,bench) ## Measure how cost grows with time steps and with neurons
	$(python) -m benchmarks --growth $(BENCH_ARGS)

.PHONY: bench-events
bench-events: $(call needs,bench) ## Measure what an input of spikes saves on a CPU, beside nn.Linear
	$(python) -m benchmarks --device cpu --events $(BENCH_ARGS)

.PHONY: bench-rates
bench-rates: $(call needs,bench) ## Measure how time on a CPU goes with the rate of an input's spikes
	$(python) -m benchmarks --device cpu --rates $(BENCH_ARGS)

.PHONY: bench-memory
bench-memory: $(call needs,bench) ## Measure how long a sequence trains in 4 GiB on a CPU
	$(python) -m benchmarks --device cpu --memory $(BENCH_ARGS)

.PHONY: bench-check
bench-check: $(call needs,bench) ## Compare two runs, OLD and NEW; fail where something got slower
	$(python) -m benchmarks.compare $(OLD) $(NEW)

.PHONY: plots
plots: $(call needs,bench) ## Draw the results in benchmarks/results/
	$(python) -m benchmarks.plot

.PHONY: rivals
rivals: $(call needs,bench) ## Install spikingjelly for the benchmarks, leaving torch as it is
	$(pip) install --no-deps --requirement benchmarks/requirements-no-deps.txt

.PHONY: bench-cpu
bench-cpu: $(call needs,bench) ## Measure on this CPU, then rewrite the tables of README and docs
	$(python) -m benchmarks --device cpu $(BENCH_ARGS)
	$(python) -m benchmarks.table

.PHONY: instructions
instructions: ## Count the instructions of the CPU's scans, beside what their design predicts (needs valgrind)
	$(PYTHON) -m tools.instructions

.PHONY: predictions
predictions: $(call needs,bench) ## Rewrite the predicted times of docs/kernels.md from the plan's arithmetic
	$(python) -m tools.predictions

.PHONY: readme
readme: $(call needs,bench) ## Rewrite the tables of README and docs from benchmarks/results/
	$(python) -m benchmarks.table

# Beside a GPU there is often one torch and no network, so nothing is installed where a Python has what the run needs.
# What else is missing, its tests are skipped by name.
equipped = from importlib.util import find_spec; exit(not all(map(find_spec, ("torch", "pytest", "pybind11", "setuptools"))))
ifneq ($(filter gpu,$(MAKECMDGOALS)),)
gpu_python := $(shell for each in "$(python)" "$(PYTHON)"; do "$$each" -c '$(equipped)' && echo "$$each" && break; \
  done 2>/dev/null)
endif

.PHONY: gpu
gpu: $(if $(gpu_python),,$(call needs,test bench)) ## Build, test, sanitize and measure on the GPU; into $OUT or results/
	PYTHON=$(or $(gpu_python),$(python)) benchmarks/gpu.sh $(GPU_ARGS)

.PHONY: build
build: $(stamps)/torch ## Rebuild in place what has changed
	@$(compile)
	@mkdir -p $(stamps) && touch $(built)

.PHONY: install
install: $(stamps)/torch ## Install into the environment, in editable form, and tell what was built
	$(pip) install --no-build-isolation --editable .
	@touch $(built)
	@$(python) -c "import leakypar; print(leakypar.build_info())"

.PHONY: wheel sdist
wheel sdist: $(call needs,dist) ## Build a wheel or an sdist into dist/, check it, install it in a fresh environment
	$(python) -m tools.distribution $@

.PHONY: docs
docs: $(call needs,docs) ## Build the documentation into build/docs; a warning is an error
	$(python) -m sphinx --fail-on-warning --keep-going -q docs build/docs
	@echo "build/docs/index.html"

.PHONY: check
check: lint test ## Everything that must hold before a commit

.PHONY: lint
lint: $(call needs,test dev) ## Check style and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror $(cxx_files)
	$(bin)/mypy

.PHONY: format
format: $(call needs,dev) ## Put every file into the house style
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cxx_files)

.PHONY: ptxas
ptxas: ## Compile every kernel for every architecture; print registers, fail on spills
	$(PYTHON) -m tools.ptxas_report

.PHONY: schedule
schedule: ## Decode every kernel's machine code; hold it to the claims beside the kernels
	$(PYTHON) -m tools.schedule

.PHONY: simulate
simulate: ## Run the kernels' decoded loops on a model of a multiprocessor: clocks a step and a tile, not measured
	$(PYTHON) -m tools.simulate

.PHONY: asan
asan: $(call needs,test) ## Run the emulated CUDA kernels under AddressSanitizer and UBSan
	$(python) -m tests.emulation.build --sanitize address,undefined -- $(bin)/pytest $(TESTS) -k emulat $(PYTEST_ARGS)
	for seed in 1 2 3 4; do $(python) -m tests.emulation.build --sanitize address,undefined -- \
	  $(python) -m tests.fuzz_operators --emulated --seed $$seed; done

.PHONY: clean
clean: ## Remove what was built (not the environment)
	rm -rf build dist *.egg-info leakypar/_C.*.so leakypar/_build.json .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# pip says what it downloads, with a bar on a terminal. It hides what a build prints, so the extension is built first,
# where ninja counts the files, and pip finds it done.
$(stamps)/torch: $(VENV)/pyvenv.cfg
	@echo "==> $(VENV): installing $(TORCH) and what builds an extension; a CUDA build of torch is some 3 GB"
	$(pip) install "$(TORCH)" $$($(PYTHON) toolchain.py)
	@mkdir -p $(stamps) && touch $@

$(built): $(csrc) setup.py toolchain.py $(stamps)/torch
	@echo "==> $(VENV): compiling the extension"
	@$(compile)
	@touch $@

$(stamps)/%: pyproject.toml setup.py $(built)
	@echo "==> $(VENV): installing what \"$*\" needs"
	$(pip) install --no-build-isolation --editable ".[$*]"
	@touch $@ $(built)
	@$(python) -c "import leakypar; print(leakypar.build_info())"
