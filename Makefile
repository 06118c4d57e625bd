# Needs make and Python 3.11 or later; everything else goes into .venv.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS ?=
# processes that run tests; most of the time each waits
TESTS_AT_ONCE ?= 3

.DEFAULT_GOAL := help
.PHONY: help run test check bench clean

help:
	@echo "make run    set up and start the service on 127.0.0.1:8080, with a link to try it"
	@echo "make test   set up and run every test; ARGS='-k links' picks some"
	@echo "make check  format, lint, types, layers"
	@echo "make bench  set up and measure, side by side with others; ARGS='--quick' shows that it works"
	@echo "make clean  remove what the others made, except var/"

run: $(VENV)/.run
	@exec $(BIN)/attachd serve --print-link $(ARGS)

test: $(VENV)/.test
	@$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal $(ARGS)

check: $(VENV)/.test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/unit/test_layers.py

bench: $(VENV)/.test
	@$(BIN)/python -m tests.bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@python=; for candidate in python3 python3.14 python3.13 python3.12 python3.11; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then echo "attachd needs Python 3.11 or later, and found none on the PATH" >&2; exit 1; fi; \
	if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python comes without venv; install it first (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
	fi; \
	echo "setting up $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.made
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.made
	@$(PIP) install --editable '.[test,dev]'
	@touch $@ $(VENV)/.run
