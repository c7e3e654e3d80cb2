# Everything runs in .venv, which is made on first use and never needs to be activated.
# `make PYTHON=python3.12 test` makes it with another interpreter; `make clean` first if one exists.

PYTHON  ?= python3
WORKERS ?= 2
TORCH   ?= 2.6.0
SEEDS   ?= 3

VENV  := .venv
PY    := $(VENV)/bin/python
EMPTY := $(VENV)/.empty
DEMO  := $(VENV)/.demo
DEV   := $(VENV)/.dev
PEERS := .venv-peers/jax/.done .venv-peers/torch/.done

# By variable and not by -c, so that the build backend is pinned too.
INSTALL := PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet --disable-pip-version-check

# One torch thread for each test worker: together they fill the cores.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-all test-oldest mutants doctest lint format docs examples bench bench-discrete bench-evidence bench-learning clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-15s %s\n' "$$name" "$$what"; done

setup: $(DEV)  ## make .venv with everything that development needs

demo: $(DEMO)  ## train eight families of models on digits, compare them; leaves report/
	$(PY) -m pyro_ebm.compare --data digits --quick --out report/

test: $(DEV) doctest  ## the doctests and every test not marked slow
	$(PYTEST) -n $(WORKERS) -m "not slow"

test-all: $(DEV) doctest  ## the doctests and every test
	$(PYTEST) -n $(WORKERS)

test-oldest: .venv-oldest/$(TORCH)  ## every test not marked slow, with the oldest versions supported
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(WORKERS) -m "not slow" \
		--ignore tests/test_docs.py

doctest: $(DEV)  ## the examples in the docstrings
	$(PYTEST) --doctest-modules pyro_ebm

mutants: $(DEV)  ## plant faults one at a time: each has to fail a test; goes on where it was cut
	$(PY) -m mutants --workers $(WORKERS)

lint: $(DEV)  ## check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV)  ## mend style and format where that is mechanical
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(DEV)  ## build docs/_build/html; a warning is an error
	rm -rf docs/_build docs/generated
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

examples: $(DEV)  ## run every example, small
	@set -e; for example in examples/*.py; do \
		echo "$(PY) $$example --smoke"; $(PY) "$$example" --smoke; done

bench: $(DEV) $(PEERS)  ## measure speed against the peers; leaves benchmarks/results/
	$(PY) -m benchmarks --workers $(WORKERS) --seeds $(SEEDS)

bench-learning: $(DEV) .venv-peers/torch/.done  ## how well and how fast energies are learned
	$(PY) -m benchmarks training --rounds $(SEEDS)
	$(PY) -m benchmarks learning --seeds $(SEEDS)
	$(PY) -m benchmarks figure

bench-discrete: $(DEV) $(PEERS)  ## sweeps of spins and of Boltzmann machines, beside the peers
	$(PY) -m benchmarks discrete --rounds $(SEEDS)

bench-evidence: $(DEV) $(PEERS)  ## the error of log Z by the number of gradients, beside the peers
	$(PY) -m benchmarks evidence

clean:  ## remove all that make has made, .venv included
	rm -rf $(VENV) .venv-peers .venv-oldest report build dist docs/_build docs/generated
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(EMPTY):
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(DEMO): pyproject.toml constraints.txt | $(EMPTY)
	@echo "installing into $(VENV) (about a minute, downloads aside)"
	$(INSTALL) --editable ".[arviz,compare,plot]"
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(EMPTY)
	@echo "installing into $(VENV) (about a minute, downloads aside)"
	$(INSTALL) --editable ".[dev]"
	@touch $@ $(DEMO)

.venv-oldest/%: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear .venv-oldest
	PIP_CONSTRAINT=constraints-oldest.txt .venv-oldest/bin/python -m pip install --quiet \
		--disable-pip-version-check torch==$* --editable ".[plot,arviz,compare,cut]" \
		pytest pytest-xdist hypothesis
	@touch $@

.venv-peers/%/.done: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv --clear .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
