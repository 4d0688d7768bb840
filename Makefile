# Two commands do all set-up on a fresh machine: "make demo" and "make test".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all check support versions

demo: $(INSTALLED)
	$(BIN)/nnunet-ext demo

# two processes, since tests wait for subprocesses and files, too
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: check
	$(PYTEST)

test-all: check
	$(PYTEST) -m ""

# hours each; both go on where they were stopped
support: $(INSTALLED)
	$(BIN)/python -m studies.support run build/support
	$(BIN)/python -m studies.support write build/support

versions: $(INSTALLED)
	$(BIN)/python -m studies.versions build/versions

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(INSTALLED): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed; try: make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
