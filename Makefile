# mmlab. `make` alone lists what can be made; nothing needs to be installed first but python3 (3.11 or newer) and make.
# Another interpreter: make PYTHON=/path/to/python3.13 …

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup report test nightly lint lab bench clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# flat params files; each becomes a report of its own: of ksmd's own splits, of what other splits do
PARAMS  := regression_uzp1 regression_uzp0 all_zero bimodal no_thp
OTHERS  := underused_pressure migration_no_huge
REPORTS := $(PARAMS:%=reports/01_regression_%.html) reports/02_other_splits.html $(OTHERS:%=reports/02_other_splits_%.html)
SOURCES := $(shell find mmlab -name __pycache__ -prune -o -type f -print)
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

setup: $(READY) ## the virtual environment .venv, with everything in it (the others do this when needed)

report: $(REPORTS) ## the HTML reports, in reports/
	@for page in $^; do echo "$$page"; done

test: $(READY) ## lint, types, all tests, notebooks
	@$(MAKE) --no-print-directory lint
	@echo "Tests (on $(JOBS) processes)"
	@$(BIN)/python -m pytest -q -n $(JOBS)

nightly: $(READY) ## the property test on 2,000 random scenarios
	MMLAB_SCENARIOS=2000 $(BIN)/python -m pytest -q -s tests/test_property.py

lint: $(READY) ## ruff and mypy
	@echo "Lint and types"
	@$(BIN)/ruff check .
	@$(BIN)/mypy

lab: $(READY) ## JupyterLab on the explorer, notebooks/00_explore.ipynb
	@$(BIN)/mmlab lab

bench: $(READY) ## speed, as a table
	@$(BIN)/python tests/bench.py

clean: ## removes .venv, caches and reports
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f $(REPORTS)

reports/01_regression_%.html: notebooks/01_regression.ipynb params/%.yaml $(SOURCES) | $(READY)
	@echo "Report of params/$*.yaml"
	@$(BIN)/mmlab report $< -f params/$*.yaml -o $@

reports/02_other_splits.html: notebooks/02_other_splits.ipynb $(SOURCES) | $(READY)
	@echo "Report of notebooks/02_other_splits.ipynb"
	@$(BIN)/mmlab report $< -o $@

reports/02_other_splits_%.html: notebooks/02_other_splits.ipynb params/%.yaml $(SOURCES) | $(READY)
	@echo "Report of params/$*.yaml: other splits"
	@$(BIN)/mmlab report $< -f params/$*.yaml -o $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmlab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null | head -1 | grep . || echo missing)." >&2; \
	  echo "Name another one: make PYTHON=python3.13 …" >&2; exit 1; }
	@if ! test -x $(BIN)/python; then \
	  echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $(VENV) || { echo "python3 has no venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; rm -rf $(VENV); exit 1; }; fi
	@echo "Installing mmlab and the pinned packages of constraints.txt into $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/mmlab compile
	@touch $@
