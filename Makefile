# Each target works alone from a bare checkout: it needs Python >= 3.10, make and a C++ compiler.
#   make run PYTHON=python3.12            another interpreter
#   make run ARGS='--rounds 5 --seed 1'   arguments for the command behind the target
#   FEDSYNSAM_CUDA=auto|1|0 make test     the CUDA part: if nvcc is there, always, never

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
CHECKERS := ruff mypy clang-format
CXX_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help run test check format bench docs clean
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

run: $(VENV)/installed ## one federated run with the defaults: FedSynSAM, top-k 1 %, the embedded Fashion-MNIST
	$(BIN)/fedsynsam run $(ARGS)

test: $(VENV)/installed ## the tests
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/checkers ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/checkers ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(VENV)/installed ## the kernel benchmarks on the CPU at full size, into benchmarks/results/
	$(BIN)/python -m benchmarks --device cpu $(ARGS)

docs: $(VENV)/installed ## the documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet -c constraints.txt 'fedsynsam[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean: ## remove what the build left behind, and the environment
	rm -rf $(VENV) build dist *.egg-info fedsynsam/_build.json
	find fedsynsam -name '_C.*.so' -delete

# The package is installed in editable form, so that edited Python files count at once; edited C++ files rebuild it.
# The environment follows whatever decides what is in it, this file included.
$(VENV)/installed: pyproject.toml setup.py constraints.txt Makefile csrc/build_backend.py csrc/cuda_toolkit.py $(CXX_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[report,test]'
	touch $@

$(VENV)/checkers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt $(CHECKERS)
	touch $@
