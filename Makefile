# mmlab. `make` alone lists what can be made; nothing needs to be installed first but python3 (3.11 or newer) and make.
# Another interpreter: make PYTHON=/path/to/python3.13 …

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup tools report reports test quick nightly lint format lines lab bench screenshots clean

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.tools

# Tests are rewritten so that assertions explain themselves: what was rewritten is kept, or each process takes a second for it.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q

JOBS    ?= $(shell $(PYTHON) mmlab/limits.py 2>/dev/null || echo 2)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## the virtual environment .venv with mmlab in it (the others do this when needed)

tools: $(TOOLS) ## … and with what tests and checks need

report: $(READY) ## all reports, in reports/: HTML pages with their data, and the index; REPORT=01 makes only that of notebook 01
	@$(BIN)/mmlab report $(or $(REPORT),--all) --jobs $(JOBS)

reports: report

quick: $(TOOLS) ## exactness and unit tests only (two minutes on two CPUs)
	@$(PYTEST) -n $(JOBS) -m quick

test: $(TOOLS) ## lint, types, all tests, notebooks
	@$(MAKE) --no-print-directory lint
	@echo "Tests (on $(JOBS) processes)"
	@$(PYTEST) -n $(JOBS)

nightly: $(TOOLS) ## 2,000 random scenarios; the race to compile 20 times; sweeps killed ten times; all reports made twice; the lowest versions
	MMLAB_SCENARIOS=2000 $(PYTEST) -s tests/test_property.py
	MMLAB_RACES=20 $(PYTEST) tests/kernel/test_jit.py -k threads
	MMLAB_KILLS=10 $(PYTEST) tests/studies/test_sweep.py -k 'kill or dies'
	MMLAB_TWICE=1 $(PYTEST) tests/report/test_reports_same.py
	MMLAB_LOWEST=1 $(PYTEST) tests/test_lowest.py

lint: $(TOOLS) ## ruff (rules and layout) and mypy
	@echo "Lint and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "make format lays these out anew:" >&2; $(BIN)/ruff format --check . >&2; exit 1; }
	@$(BIN)/mypy

format: $(TOOLS) ## lays out all code
	@$(BIN)/ruff format .

lines: $(TOOLS) ## lines of code, room by room, against their budgets
	@$(BIN)/python tests/lines.py

lab: $(READY) ## JupyterLab on the explorer, with its cells run
	@$(BIN)/mmlab lab

bench: $(TOOLS) ## speed and trust, into reports/benchmarks.md (half an hour)
	@$(BIN)/python tests/bench.py

screenshots: $(TOOLS) ## the explorer at four sizes and a report (needs Chromium)
	@$(PYTEST) -s tests/screenshots.py

clean: ## removes .venv, caches and the reports' pages
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	cd reports && sed -n 's/^[0-9a-f]\{64\}  //p' SHA256SUMS | grep -v '^index\.html$$' | xargs rm -f
	rmdir reports/*.data 2>/dev/null || true

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mmlab needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null | head -1 | grep . || echo missing)." >&2; \
	  echo "Name another one: make PYTHON=python3.13 …" >&2; exit 1; }
	@if ! test -x $(BIN)/python; then \
	  echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $(VENV) || { echo "python3 has no venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; rm -rf $(VENV); exit 1; }; fi
	@echo "Installing mmlab and the pinned packages of constraints.txt into $(VENV) (a minute or two, once)"
	@$(call install,.)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/mmlab compile
	@touch $@

$(TOOLS): $(READY)
	@echo "Installing what tests and checks need"
	@$(call install,.[dev])
	@touch $@

# pip would make bytecode of all that is installed, for longer than all else takes; mmlab compile makes it of what is used.
install = install="$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e $(1)"; \
  $$install --quiet || { echo "That failed; once more with all that pip says:" >&2; $$install; }
