# Everything a user or a build machine needs. Only make, python3 (3.11 or newer, with venv) and a package index are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup lint types layers commands docs tests test demo lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("brainstage needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $(STAMP)

setup: $(STAMP) ## make .venv with the locked versions

lint: $(STAMP) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## static types
	$(BIN)/mypy

layers: $(STAMP) ## which folder may import which
	$(BIN)/lint-imports

commands: $(STAMP) ## write docs/commands.md anew from the parser
	$(BIN)/python docs/generate_commands.py

docs: $(STAMP) ## the documentation as HTML, with the reference of every public name, into docs/_build/html
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going --conf-dir docs --doctree-dir docs/_build/doctrees . docs/_build/html

tests: $(STAMP) ## the tests alone
	$(BIN)/pytest

test: lint types layers docs tests ## every check

demo: $(STAMP) ## everything once, on a synthetic cohort, into demo/
	$(BIN)/brainstage demo demo

lock: $(STAMP) ## write what is installed now as the locked versions
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

clean: ## remove what can be made again
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build docs/reference src/*.egg-info
