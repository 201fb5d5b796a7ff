# Two commands need nothing but Python 3.11+ and a package index: `make demo` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Arguments for the tool behind a target, e.g. `make test ARGS="-k weights -x"`.
ARGS ?=

.PHONY: help install demo test fast layers doctests docs lint format types check bench results clean

help: ## print this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED) ## create .venv and install the package with every extra

$(INSTALLED): pyproject.toml constraints.txt
	@[ -x $(BIN)/python ] || { \
	  for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found="$$candidate"; break; \
	    fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "make: no Python 3.11 or newer with venv and pip was found. Install one (Debian: python3.11-venv)" \
	         "or name it: make PYTHON=/path/to/python3.11 ..." >&2; \
	    exit 2; \
	  fi; \
	  echo "creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv $(VENV); \
	}
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: install ## train BT and NormBT on built-in pairs and compare them (under six minutes on two cores)
	$(BIN)/normbt demo $(ARGS)

test: install ## run every test and every doctest, on two processes
	$(BIN)/python -m pytest -n 2 $(ARGS)

fast: install ## run the tests that take under ten seconds each
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

layers: install ## check that imports only go down
	$(BIN)/python -m pytest -q tests/test_layers.py

doctests: install ## run the examples in the docstrings
	$(BIN)/python -m pytest -q src $(ARGS)

docs: install ## build the docs as a site, in site/; a broken link or a page without a place is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: install ## check style and formatting (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## mend style and formatting in place (ruff)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install ## check types: strict on the core, basic above (pyright)
	$(BIN)/pyright

check: lint types layers docs test ## everything CI runs

bench: install ## step time and memory of NormBT beside plain BT
	$(BIN)/python benchmarks/loss_overhead.py $(ARGS)

results: install ## write docs/results*.md and their pictures from the summaries in docs/results; trains nothing
	$(BIN)/python -m benchmarks.evidence.pages

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist site
