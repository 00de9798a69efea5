# make demo   a trained spiking network from nothing, in about two minutes
# make test   lint, types and the whole test suite
# make bench  speed and memory against the peers that are installed (benchmarks/README.md); QUICK=1: whether it runs

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
BENCH_PYTHON ?= $(BIN)/python

.PHONY: demo install test bench clean

demo: install
	$(BIN)/spiketrain train digits

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	@echo "installing (PyTorch is large: a minute or more the first time) …"
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile   # two processes with one thread each, a file in one of them

bench: install
	$(BENCH_PYTHON) benchmarks/all.py $(if $(QUICK),--quick --into build/bench)

clean:
	rm -rf $(VENV) build *.egg-info
