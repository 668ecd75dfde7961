# Everything runs in .venv, made on first use and brought up to date when its recipe changes.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq -c requirements/constraints.txt

.PHONY: help demo test test-slow lint clean

help:
	@echo 'make demo       train a small model on all images and with PFB, side by side'
	@echo 'make test       run the tests (make test-slow: those that take minutes)'
	@echo 'make lint       check style and format'
	@echo 'make clean      remove .venv'

demo: .venv/.runtime
	@$(BIN)/python tools/demo.py

test: .venv/.test
	@$(BIN)/python -m pytest -m 'not slow'

test-slow: .venv/.test
	@$(BIN)/python -m pytest -m slow

lint: .venv/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean:
	rm -rf .venv

.venv/.runtime: requirements/runtime.txt requirements/constraints.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("pfb_mmseg needs Python 3.10 or newer, found %d.%d; name another one: make PYTHON=..." % v[:2])'
	@echo 'Setting up .venv with the versions of requirements/constraints.txt (once; a few minutes) ...'
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -r requirements/runtime.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.test: .venv/.runtime requirements/test.txt
	@$(INSTALL) -r requirements/test.txt
	@touch $@
