# One runner for people and for CI. `make` alone prints the targets.
.DEFAULT_GOAL := help
.PHONY: help install up demo test check fix parity bench
.NOTPARALLEL:

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

# Settings of this machine (TENFOLD_PORT=…, TENFOLD_HOME=…) may stand in a file .env, one NAME=value a line.
ifneq ($(wildcard .env),)
include .env
export $(shell sed -n 's/^\(TENFOLD_[A-Z_]*\)=.*/\1/p' .env)
endif

help: ## print this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install everything into it (the other targets do it by themselves)

up: $(INSTALLED) ## start everything on this machine; Ctrl-C drains and stops it
	@exec $(PYTHON) -m deploy.local --end-with-parent

demo: $(INSTALLED) ## start everything on a free port, run every method once, write a page with the pictures, stop
	@exec $(PYTHON) -m deploy.local.demo --end-with-parent

test: $(INSTALLED) ## run the tests, but for the slow ones
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(INSTALLED) ## look at format, lint, types, and who imports whom
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy .
	$(VENV)/bin/lint-imports

fix: $(INSTALLED) ## format, and mend what ruff can mend
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

parity: $(INSTALLED) ## run the slow tests: networks of paper size against their reference
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m slow

bench: $(INSTALLED) ## measure overhead and speed; print ratios
	$(PYTHON) -m benchmarks

# The first Python on PATH that is new enough; `make install BASE_PYTHON=/path/of/python3.12` names another.
CANDIDATES := python3 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

$(INSTALLED): pyproject.toml client/pyproject.toml
	@base="$(BASE_PYTHON)"; \
	for python in $(CANDIDATES); do \
	  [ -n "$$base" ] || { $$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && base="$$python" || true; }; \
	done; \
	if [ -z "$$base" ] || ! "$$base" -c '$(NEW_ENOUGH)'; then \
	  echo "Tenfold needs Python 3.11 or newer; found $$($${base:-python3} --version 2>&1 || echo none)." >&2; \
	  echo "If one is installed elsewhere: make install BASE_PYTHON=/path/of/python3.11" >&2; exit 1; \
	fi; \
	"$$base" -m venv $(VENV) || { \
	  echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[methods,local,dev]' -e ./client
	@touch $@
