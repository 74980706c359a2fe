# One word for every habit. `make serve` and `make test` are all that a new machine needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export PORT ?= 8000
# Test files at once. More than there are cores: most tests wait for a server.
TEST_JOBS ?= 3

.PHONY: help setup serve test spec lint types check soak mutations chat bench llama-server model clean

help:           ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

setup: $(VENV)/.dev  ## install everything into .venv; quick when nothing changed

serve: $(VENV)/.runtime  ## serve the embedded model (ENDSTOP_MODEL=... another) on PORT, default 8000
	@ENDSTOP_HOST=$${ENDSTOP_HOST:-127.0.0.1} exec $(BIN)/gunicorn -c gunicorn.conf.py wsgi:app

test: $(VENV)/.dev lint types  ## everything: lint, types, unit, parity and real-socket tests
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile

spec:           ## prove the model of the protocols and reject its mutants; needs spin and a C compiler
	$(PYTHON) -m spec

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: $(VENV)/.runtime  ## hold a server of its own, under both worker classes, against every check
	$(BIN)/python -m worker check --worker-class gevent
	$(BIN)/python -m worker check --worker-class gthread

soak: $(VENV)/.dev  ## badly behaved clients, faults and signals against a real server; SOAK_S=60 seconds of load
	$(BIN)/python -m tests.soak

mutations: $(VENV)/.dev  ## take every guard away, one by one, and see that a test misses it; hours
	$(BIN)/python -m tests.mutations --write docs/guards.md

chat: $(VENV)/.runtime  ## talk to the model in the terminal
	$(BIN)/python -m worker chat

bench: $(VENV)/.bench  ## Endstop beside naive Flask, transformers serve and llama-server; BENCH="--models ..." for others
	$(BIN)/python -m bench $(BENCH)

llama-server: $(VENV)/.bench  ## build llama.cpp's server for make bench; ten minutes, cmake and a C++ compiler
	bench/build_llama_server.sh

model: $(VENV)/.dev  ## train the embedded model again: make model VERSE=path/to/tinyshakespeare.txt
	@test -f "$(VERSE)" || { echo "make model needs VERSE=path/to/tinyshakespeare.txt"; exit 2; }
	$(BIN)/python -m models.training --verse "$(VERSE)"

clean:          ## remove the environment and all caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis models/training/work

# torch goes first and alone: its pin is satisfied by an installed CPU build, and nothing after it then pulls another.
# The kernels are built again when their sources have changed, as after an upgrade.
$(VENV)/.runtime: requirements.txt $(wildcard worker/engine/native/*.cpp worker/engine/native/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "Endstop needs Python 3.11 or 3.12; set PYTHON=path/to/it"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no venv module: install your system's package for it (Debian: python3-venv)"; exit 2; }
	@echo "installing into $(VENV): minutes the first time, and more where torch is built for CUDA (docs/quickstart.md)"
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  $$(grep -o '^torch==[^ ]*' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m worker.engine.native
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@
