# `make demo` and `make test` do all their set-up on a fresh machine (Linux, Python 3.11 to 3.13, no GPU needed).
# PYTHON=python3.12 uses that Python, with a virtual environment of its own.
# TORCH_INDEX=URL takes torch from that package index, such as one of CPU wheels.
PYTHON ?= python3
VENV ?= .venv$(patsubst %,-%,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet

.PHONY: demo test coverage lint types format gpu clean

# One thread: on idle cores a second one saves a third of this small model's time, on busy ones it costs far more.
demo: $(VENV)/installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python train.py

test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything that a machine with an NVIDIA GPU should run, with the torch and triton that it already has.
# ARGS=--quick first; BASE=FILE DATA=DIR also trains SmolLM2-135M on the pairs in DIR (docs/gpu.md).
gpu:
	$(PYTHON) -m eval.gpu_suite $(if $(BASE),--base $(BASE)) $(if $(DATA),--data $(DATA)) $(ARGS)

# torch alone comes from TORCH_INDEX; what it requires comes with the rest.
$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard eval/codebleu/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(if $(TORCH_INDEX),$(INSTALL) --constraint constraints.txt --no-deps --index-url '$(TORCH_INDEX)' torch)
	$(INSTALL) --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage eval/codebleu/*.so
