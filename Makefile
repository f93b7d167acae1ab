# Two commands for everybody:   make demo   make test
# For people who change the code: make check (format, lint, types, import rules), make bench,
# make chaos.

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

.PHONY: help demo test check bench chaos format clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.host  ## set up what is needed and run the whole line once on a simulated recording
	@$(BIN)/edge demo --out $(DEMO) --force

test: $(VENV)/.dev .programs  ## set up what is needed and pass the tests
	@$(BIN)/python -m pytest
	@echo "The tests passed. Skipped ones are listed above with their reason (SKIPPED)."
	@echo "Next: 'make demo' shows the whole line; 'make check' is what else CI runs; README.md."

check: $(VENV)/.dev  ## format, lint, types and import rules: what CI runs before the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.dev .programs  ## measure: the acceptance figures on real data, and speed beside alternatives
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks

chaos: $(VENV)/.dev .programs  ## 200 rounds of kill -9, cut links and full disks; a judge counts what arrived
	@$(BIN)/python -m tests.chaos --rounds 200

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

# System programs that the tests run for real: a broker, GStreamer, systemd's own checker, and
# openssl for test certificates. RUNLEVEL=1 keeps a package from starting a service here. Where
# one may not be installed, its tests skip and say so.
.PHONY: .programs
.programs: $(VENV)/bin/promtool
	@want=(); have() { PATH="$$PATH:/usr/sbin" command -v "$$1" >/dev/null; }; \
	have mosquitto || want+=(mosquitto); \
	have openssl || want+=(openssl); \
	have systemd-analyze || want+=(systemd); \
	have gst-inspect-1.0 && gst-inspect-1.0 --exists matroskamux && gst-inspect-1.0 --exists \
	  videotestsrc || want+=(gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good); \
	if (($${#want[@]})); then \
	  echo "Installing for the tests: $${want[*]}"; \
	  { $(ROOT) apt-get update -qq && $(ROOT) env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends "$${want[@]}"; } || \
	  echo "Could not install $${want[*]} (no root, no sudo): their tests will skip and say so."; fi

# Prometheus' rule checker and server, unpacked beside the interpreter: no service, no root.
$(VENV)/bin/promtool: | $(VENV)/bin/python
	@command -v promtool >/dev/null || { cd $(VENV) && rm -rf prometheus && mkdir prometheus && \
	  cd prometheus && { apt-get download -qq prometheus 2>/dev/null || { \
	    $(ROOT) apt-get update -qq && apt-get download -qq prometheus; }; } && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 -C ../bin \
	    ./usr/bin/promtool ./usr/bin/prometheus; } || \
	  echo "Could not fetch promtool: the alert rules' tests will skip and say so."
