# `make demo` and `make test` do all their set-up on a fresh machine (Python 3.11 to 3.13, no GPU needed).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint gpu clean

# One thread: on idle cores a second one saves a third of this small model's time, on busy ones it costs far more.
demo: $(VENV)/installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python train.py

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything that a machine with an NVIDIA GPU should run, with the torch and triton that it already has.
# BASE=FILE DATA=DIR also trains SmolLM2-135M on the pairs in DIR.
gpu:
	$(PYTHON) -m kernels.gpu_suite --output gpu-results $(if $(BASE),--base $(BASE)) $(if $(DATA),--data $(DATA))

$(VENV)/installed: setup.py constraints.txt $(wildcard eval/codebleu/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis eval/codebleu/*.so
