# Two commands for everybody:   make demo   make test
# For people who change the code: make check (format, lint, types, import rules), make bench.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-run
# The first interpreter that is new enough; say `make PYTHON=/path/to/python3.12 ...` to choose.
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& command -v $$p && break; done)
# How to become root without a question: empty for root, `sudo` where it asks nothing or a person
# sits at a terminal, `false` where there is no way.
ROOT := $(shell [ "$$(id -u)" = 0 ] && echo env || { { sudo -n true 2>/dev/null || { [ -t 0 ] && \
	command -v sudo >/dev/null; }; } && echo sudo || echo false; })

.PHONY: help demo test check bench format clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.host  ## set up what is needed and run the whole line once on a simulated recording
	@$(BIN)/edge demo --out $(DEMO) --force

test: $(VENV)/.dev .mosquitto  ## set up what is needed and pass the tests
	@$(BIN)/python -m pytest
	@echo "The tests passed. Skipped ones are listed above with their reason (SKIPPED)."
	@echo "Next: 'make demo' shows the whole line; 'make check' is what else CI runs; README.md."

check: $(VENV)/.dev  ## format, lint, types and import rules: what CI runs before the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.dev  ## measure: the acceptance figures on real data, and speed beside alternatives
	@$(BIN)/python -m tests.benchmarks

format: $(VENV)/.dev  ## put the code into the form that `make check` wants
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and the demo's output
	rm -rf $(VENV) $(DEMO)

# The demo needs the host's packages, the tests need the developers' too; both share one place.
$(VENV)/.host $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing orin-inspect[$*] into $(VENV) (the first time this takes some minutes)."
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[$*]'
	@touch $@

# Debian and Ubuntu leave venv's other half (ensurepip) to a system package.
$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "make: expected Python 3.10 to 3.13, found none. Install it: apt-get install python3" >&2; \
	  exit 3; fi
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "Python's venv is incomplete here: installing the system package python3-venv."; \
	  $(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq python3-venv; } || { \
	  echo "make: expected python3-venv, and could not install it. Ask an administrator for" \
	    "'apt-get install python3-venv', then run make again." >&2; exit 3; }
	@$(PYTHON) -m venv --clear $(VENV)

# The delivery tests want the real Mosquitto. RUNLEVEL=1 keeps the package from starting a broker
# of its own on this machine. Where it may not be installed, those tests skip and say why.
.PHONY: .mosquitto
.mosquitto:
	@PATH="$$PATH:/usr/sbin" command -v mosquitto >/dev/null || { \
	  echo "Installing the system package mosquitto for the delivery tests."; \
	  $(ROOT) apt-get update -qq && $(ROOT) env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends mosquitto; } || \
	  echo "Could not install mosquitto (no root, no sudo): its tests will skip and say so."
