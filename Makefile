# `make` lists the targets. Variables:
#   PYTHON=python3.12   VENV=/tmp/v   PYTEST_ARGS="-k sampler"
#   WORKERS=1   processes that run the tests
#   SPHINX_ARGS="-D nb_execution_mode=off"   make docs without running the recipes
#   TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"   where pip takes torch from
#   PIXELCNN_FAST_NATIVE: see setup.py
#   OUT=/tmp/results   where gpu-check writes, instead of benchmarks/results

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
PYTEST_ARGS ?=
SPHINX_ARGS ?=
WORKERS ?= 2
N ?= 300
FIRST ?= 0

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
native_sources := setup.py CMakeLists.txt pixelcnn_fast/program/steps.py pixelcnn_fast/program/schema.py pixelcnn_fast/heads/options.py \
	$(shell find csrc -type f)
cxx_sources := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')
dist := --dist loadfile --no-loadscope-reorder  # in the order of tests/conftest.py
sanitizers := address undefined thread
machine := $(shell uname -m)

.PHONY: help setup native generate docs linkcheck lint lint-ruff lint-mypy lint-clang-format test test-all fuzz demo bench gpu-check sanitize wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.native ## a virtual environment with the package, its native part and the test tools

native: $(VENV)/.package ## compile what changed in csrc, into pixelcnn_fast/
	@$(python) setup.py -q build_ext --inplace
	@touch $(VENV)/.native

lint: lint-ruff lint-mypy lint-clang-format ## ruff, mypy and clang-format; .pre-commit-config.yaml runs the same

lint-ruff: $(VENV)/.package
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

lint-mypy: $(VENV)/.package
	$(python) -m mypy

lint-clang-format: $(VENV)/.package
	@echo "clang-format --dry-run -Werror, on $(words $(cxx_sources)) files"
	@$(VENV)/bin/clang-format --dry-run -Werror --style=file --fallback-style=none $(cxx_sources)

test: setup lint ## lint, then the tests that every change runs: a few minutes
	$(python) -m pytest -n $(WORKERS) $(dist) -m 'not thorough' $(PYTEST_ARGS)

test-all: setup lint ## lint, then all tests: half an hour on two cores
	$(python) -m pytest -n $(WORKERS) $(dist) $(PYTEST_ARGS)

generate: setup ## write what is generated in docs/: tables, listings, drawings
	$(python) docs/generate.py

docs: $(VENV)/.docs ## the documentation site, in out/docs; a warning is an error
	$(VENV)/bin/sphinx-build -q -W --keep-going $(SPHINX_ARGS) docs out/docs

linkcheck: $(VENV)/.docs ## whether the documentation's external links lead somewhere, which needs the internet
	$(VENV)/bin/sphinx-build -q -b linkcheck docs out/linkcheck

fuzz: setup ## N random networks with every runtime, and N lives of models: make fuzz N=1000 FIRST=0
	$(python) -m tests.system.fuzz $(N) $(FIRST)

demo: setup ## pictures and a comparison of the samplers, in out/ (a few minutes)
	$(python) -m pixelcnn_fast demo

bench: setup ## measure the ops and the samplers on this machine, in out/
	@mkdir -p out
	$(python) -m pytest -q benchmarks/test_ops_bench.py --benchmark-json=out/ops-benchmark.json
	$(python) -m pixelcnn_fast bench

# Uses the environment at hand, because a machine with a GPU often has no network to set up another one.
gpu-check: ## build, test and measure on a GPU, in under ten minutes; without one, do what can be done
	$(or $(wildcard $(python)),$(PYTHON)) benchmarks/gpu_check.py $(if $(OUT),--out '$(OUT)')

sanitize: $(sanitizers:%=sanitize-%) ## run the samplers and the ops under the address, undefined and thread sanitizers

sanitize-%: $(VENV)/.package
	@echo "check_sampler and check_ops under the $* sanitizer"
	@$(VENV)/bin/cmake -S . -B build/sanitize-$* -G Ninja --log-level=NOTICE \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DPython_EXECUTABLE=$(abspath $(python)) -DPIXELCNN_FAST_SANITIZE=$*
	@$(VENV)/bin/cmake --build build/sanitize-$*
	build/sanitize-$*/check_sampler
	build/sanitize-$*/check_ops
	@echo "check_cuda, the CUDA kernels on the host, and check_clusters under the $* sanitizer"
	@$(VENV)/bin/cmake -S tests/csrc/emulation -B build/emulation-$* -G Ninja --log-level=NOTICE \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DPython_EXECUTABLE=$(abspath $(python)) -DEMULATION_SANITIZE=$*
	@$(VENV)/bin/cmake --build build/emulation-$* --target check_cuda check_clusters
	build/emulation-$*/check_cuda
	build/emulation-$*/check_clusters

# Zig brings an old glibc to link with, so that the module loads on systems older than this one. auditwheel checks that.
wheel: $(VENV)/.package ## the sdist and, for Linux with glibc 2.28 or newer, this Python's wheel, checked, in dist/
	@rm -f dist/*-linux_*.whl
	@CXX='$(abspath $(python)) -m ziglang c++ -target $(machine)-linux-gnu.2.28' CXXFLAGS=-s $(python) -m build --no-isolation -o dist
	@PATH="$(abspath $(VENV))/bin:$$PATH" $(python) -m auditwheel repair --plat manylinux_2_28_$(machine) -w dist dist/*-linux_*.whl
	@rm dist/*-linux_*.whl
	$(python) -m twine check --strict dist/*

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .benchmarks .hypothesis pixelcnn_fast/_native*.so $(VENV)/.native
	find pixelcnn_fast tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is missing or older than Python 3.10: name a newer one, as in PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) can't make a virtual environment (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

# The package goes in without its native part, which `setup.py build_ext` then builds: one build folder, one
# set of build tools, so that a change in csrc compiles only what depends on it.
$(VENV)/.package: pyproject.toml constraints-dev.txt | $(python)
	@echo "Installing into $(VENV); PyTorch is large, so the first time takes minutes"
	@$(if $(TORCH_ARGS),$(pip) install -q -c constraints-dev.txt $(TORCH_ARGS) torch)
	@PIXELCNN_FAST_NATIVE=0 $(pip) install -q -c constraints-dev.txt -e '.[test,lint]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@PIXELCNN_FAST_NATIVE=0 $(pip) install -q -c constraints-dev.txt -e '.[docs]'
	@touch $@

$(VENV)/.native: $(VENV)/.package $(native_sources)
	@$(python) setup.py -q build_ext --inplace
	@touch $@
