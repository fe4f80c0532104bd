# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON      ?= python3
VENV        ?= .venv
CORE_VENV   ?= $(VENV)-core
PEERS_VENV  ?= $(VENV)-peers
# A wheel index of your choice beside the configured one, for example one with CPU builds of torch. Empty: not used.
TORCH_INDEX ?=
# DEEP=1 draws many more examples in the property tests.
DEEP        ?=
WORKERS     ?= auto
TEST_ARGS   ?=
DEMO_ARGS   ?=
BENCH_ARGS  ?=
# --only NAME, --jobs N, --likely-only, --list
MUTANT_ARGS ?=
# --library NAME, --case WORDS, --keep FILE, --write
PEERS_ARGS  ?=

BIN      = $(VENV)/bin
INSTALL  = -m pip install -qq -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
deep     = $(filter-out 0,$(DEEP))
# Threads of BLAS times workers of pytest would fight for the cores: one thread each.
test_env = OMP_NUM_THREADS=1 $(if $(deep),IMPLICITGRAD_HYPOTHESIS_PROFILE=deep)
# What wants torch or SciPy as soon as it is imported.
needs_torch = $(addprefix --ignore=tests/,torch scipy distributed benchmarks)
PYTEST   = -m pytest -n $(WORKERS) $(if $(deep),--timeout=3600) $(TEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-core test-jax lint mutants paper-quick bench peers docs clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON, VENV, TORCH_INDEX=<url of a wheel index>, DEMO_ARGS, TEST_ARGS, BENCH_ARGS, WORKERS"

demo: $(VENV)/.installed ## train an associative memory on real digits (DEMO_ARGS="--help" lists its options)
	$(BIN)/python examples/associative_memory.py $(DEMO_ARGS)

test: $(VENV)/.installed ## all tests, and the doctests of package, README and docs (DEEP=1 for many more examples)
	$(test_env) $(BIN)/python $(PYTEST)

test-core: $(CORE_VENV)/.installed ## the core's tests in an environment without torch and SciPy
	$(test_env) $(CORE_VENV)/bin/python $(PYTEST) tests $(needs_torch)

lint: $(VENV)/.group-lint ## ruff check, ruff format --check, mypy, and the five floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: $(VENV)/.installed ## plant faults in copies of the package: does the suite turn red? (half an hour or more)
	$(test_env) $(BIN)/python tests/mutants.py $(MUTANT_ARGS)

paper-quick: $(VENV)/.installed ## the experiments of the paper, end to end at a toy size; see docs/reproduction.md
	for experiment in propositions hopfield citation; do \
	    OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.paper $$experiment --quick --out outputs/paper-quick || exit 1; \
	done

bench: $(VENV)/.group-bench ## what a backward pass costs beyond its products, and the memory it takes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_overhead.py $(BENCH_ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_memory.py

peers: $(PEERS_VENV)/.installed ## the zoo: what other libraries and ours make of 48 faults (PEERS_ARGS=--write for docs/peers.md)
	OMP_NUM_THREADS=1 $(PEERS_VENV)/bin/python -m benchmarks.peers $(PEERS_ARGS)

test-jax: $(PEERS_VENV)/.installed ## every solver's properties on JAX's arrays
	$(test_env) $(PEERS_VENV)/bin/python $(PYTEST) tests/backends/test_portability.py

docs: $(VENV)/.group-docs ## the pages, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

clean: ## remove caches, reports and built pages
	rm -rf build dist docs/_build htmlcov .coverage .coverage.* coverage.xml
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find implicitgrad tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## the same, and the environments
	rm -rf "$(VENV)" "$(CORE_VENV)" "$(PEERS_VENV)" .nox

# --- environments -----------------------------------------------------------------------------------------------------
# Each installation leaves a stamp file, so a repeated command needs no network. Editing pyproject.toml or
# constraints.txt makes the next command install again.

%/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is no Python 3.11 or newer. Name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Creating $* (once)"
	@$(PYTHON) -m venv $*
	@$*/bin/python -m pip install -qq "pip>=25.1" # the first that knows --group; Python 3.11 bundles an older one
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.pip
	@echo "Installing implicitgrad with torch, SciPy and the test tools into $(VENV) (once; this takes a minute or more)"
	@$(BIN)/python $(INSTALL) -e ".[demo,data]" --group test
	@touch $@

$(CORE_VENV)/.installed: pyproject.toml constraints.txt | $(CORE_VENV)/.pip
	@echo "Installing the core of implicitgrad and the test tools into $(CORE_VENV) (once)"
	@$(CORE_VENV)/bin/python $(INSTALL) -e . --group test
	@touch $@

$(PEERS_VENV)/.installed: pyproject.toml constraints.txt | $(PEERS_VENV)/.pip
	@echo "Installing implicitgrad and the libraries it is compared with into $(PEERS_VENV) (once; 1.5 GB)"
	@$(PEERS_VENV)/bin/python $(INSTALL) -e ".[peers]" --group test
	@touch $@

$(VENV)/.group-%: $(VENV)/.installed
	@echo "Installing the $* tools into $(VENV) (once)"
	@$(BIN)/python $(INSTALL) --group $*
	@touch $@
