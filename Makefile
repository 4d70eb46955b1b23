# Everything a user or a build machine needs. Only make, python3 (3.11 or newer, with venv) and a package index are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Files with a hash in the lock and nothing else: no dependency, build tool or script that the lock does not name.
LOCKED := $(PIP) install --require-hashes --no-deps

.DEFAULT_GOAL := help
.PHONY: help setup lint types layers commands docs tests test demo lock audit clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

$(STAMP): requirements.lock requirements-dev.lock requirements-cpu.lock requirements-cuda.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("brainstage needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch's CPU wheel where pip is told of a place that has it; the package index has the CUDA wheel, for Linux.
	$(LOCKED) -r requirements-cpu.lock 2>/dev/null || echo "no CPU wheel of torch found, taking that of the package index"
	$(LOCKED) -r requirements.lock -r requirements-dev.lock
	# The CUDA wheel asks for NVIDIA's libraries, the CPU wheel for none.
	if $(BIN)/python -m pip check | grep -q '^torch .* requires '; then $(LOCKED) -r requirements-cuda.lock; fi
	$(PIP) --quiet install --no-build-isolation --no-deps --editable .
	$(PIP) check
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

lock: $(STAMP) ## write the lock files anew, with hashes; the locked versions stay where pyproject.toml allows them
	$(BIN)/python dependencies/lock.py

audit: $(STAMP) ## known vulnerabilities and licences of what is locked; 75 where no advisory database answers
	$(BIN)/python dependencies/audit.py

clean: ## remove what can be made again
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build docs/reference src/*.egg-info
