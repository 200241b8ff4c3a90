# Needs python3.11 with its pip, and nothing else; everything is installed into .venv by the first target that needs it.
#
#   make demo       run the main job on the organism that ships, and say where the report is
#   make test       lint, types, import floors, documentation's examples, quick tests
#   make test-all   the same with the slow tests
#   make bench      compare with the peers, in an environment of their own
#   make docs       build the documentation into docs/_build
#   make lint       what `make test` checks before it runs anything
#   make clean      remove what these made

PYTHON ?= python3.11
REPORT ?= patchclamp-report
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Named in every install: pip then never exchanges this build for a newer one that some package admits.
TORCH := torch==2.13.0

.DEFAULT_GOAL := test
.PHONY: demo test test-all bench docs lint clean

# ── environment: a stamp for each set of packages, renewed when pyproject.toml changes ──────────────────────────────

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(PIP) install "pip>=25.1"
	@touch $@

.venv/.torch: .venv/.python
	@echo "Installing torch."
	$(PIP) install $(TORCH)
	@touch $@

.venv/.package: .venv/.torch pyproject.toml
	@echo "Installing patchclamp."
	$(PIP) install $(TORCH) --editable .
	@touch $@

.venv/.dev: .venv/.package
	@echo "Installing what the tests need."
	$(PIP) install $(TORCH) --editable . --group dev
	@touch $@

.venv/.slow: .venv/.dev
	@echo "Installing what the slow tests need."
	$(PIP) install $(TORCH) --editable . --group slow
	@touch $@

.venv/.docs: .venv/.package
	@echo "Installing what the documentation needs."
	$(PIP) install $(TORCH) --editable . --group docs
	@touch $@

# ── what a person asks for ──────────────────────────────────────────────────────────────────────────────────────────

demo: .venv/.package
	$(BIN)/patchclamp investigate organism:tales --task ioi --out $(REPORT)
	@echo
	@echo "The report: $(abspath $(REPORT))/report.html"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n $(WORKERS) -m "not slow"

test-all: lint .venv/.slow
	$(BIN)/pytest -n $(WORKERS)

bench:
	PYTHON=$(PYTHON) bench/setup.sh
	@status=0; for name in sweep record import_time; do \
	  echo "── $$name"; bench/.venv-peers/bin/python bench/$$name.py --json bench/results/$$name.json || status=1; \
	done; for name in dictionary_step formats; do \
	  echo "── $$name"; bench/.venv-dictionaries/bin/python bench/$$name.py --json bench/results/$$name.json || status=1; \
	done; exit $$status

docs: .venv/.docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --builder html docs docs/_build
	@echo "The documentation: $(abspath docs/_build)/index.html"

clean:
	rm -rf .venv bench/.venv-peers bench/.venv-dictionaries docs/_build $(REPORT) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
