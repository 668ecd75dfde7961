# Everything runs in .venv, made on first use and brought up to date when its recipe changes.
PYTHON ?= python3
BIN := .venv/bin
# Compiling all of torch's modules would take longer than what the tests import of them.
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-compile -c requirements/constraints.txt

# OpenMMLab's own packages, in an environment of their own. mmcv has no wheel for this torch: it is
# built without optimisation, which halves the time and is enough for tests.
OPENMMLAB := .venv-openmmlab/bin
OPENMMLAB_INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(OPENMMLAB)/python -m pip install -qq

# A file of tests stays in one process, which makes its fixtures once. One thread each, unless the
# caller wants more; threads that outnumber the cores sleep, not spin, while they wait for each other.
# One process more than there are cores, since some tests wait, for ranks or for a time limit.
WORKERS := $$(($$(getconf _NPROCESSORS_ONLN) + 1))
PYTEST := -m pytest -rs --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile
TEST_THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive}

.PHONY: help demo test test-slow test-openmmlab fuzz gpu-report lint docs clean

help:
	@echo 'make demo            train a small model on all images and with PFB, side by side'
	@echo 'make test            run the tests (make test-slow: those that take minutes)'
	@echo "make test-openmmlab  the same with OpenMMLab's own packages (builds mmcv first)"
	@echo 'make fuzz            try random options and inputs for minutes (PFB_FUZZ=1000: longer)'
	@echo 'make gpu-report      measure on a GPU what wants one; GPU_REPORT="--camvid FOLDER" adds options'
	@echo 'make lint            check style and format'
	@echo 'make docs            build the pages as a site in site/; a broken link is an error'
	@echo 'make clean           remove .venv, .venv-openmmlab and site'

demo: .venv/.runtime
	@$(BIN)/python tools/demo.py

test: .venv/.test .venv/.mmdet
	@$(TEST_THREADS) $(BIN)/python $(PYTEST) -m 'not slow'
	@$(TEST_THREADS) PYTHONPATH=.venv/mmdet $(BIN)/python $(PYTEST) -m 'not slow' tests/with_mmdet

test-slow: .venv/.test .venv/.mmdet
	@$(BIN)/python -m pytest -m slow
	@PYTHONPATH=.venv/mmdet $(BIN)/python -m pytest -m slow tests/with_mmdet

test-openmmlab: .venv-openmmlab/.test
	@$(TEST_THREADS) $(OPENMMLAB)/python $(PYTEST) -m 'not slow'

fuzz: .venv/.test
	@PFB_FUZZ=$${PFB_FUZZ:-50} $(BIN)/python -m pytest tests/test_fuzz.py

gpu-report: .venv/.test
	@$(BIN)/python -m benchmarks.gpu_report $(GPU_REPORT)

lint: .venv/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

docs: .venv/.docs
	@$(BIN)/mkdocs build --strict  # with --quiet it would not count warnings

clean:
	rm -rf .venv .venv-openmmlab site

.venv/.runtime: requirements/runtime.txt requirements/constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("pfb_mmseg needs Python 3.10 or newer, found %d.%d; name another one: make PYTHON=..." % v[:2])'
	@echo 'Setting up .venv with the versions of requirements/constraints.txt (once; a few minutes) ...'
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -r requirements/runtime.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.test: .venv/.runtime requirements/test.txt requirements/torchvision.txt
	@$(INSTALL) -r requirements/test.txt
	@$(INSTALL) --no-deps -r requirements/torchvision.txt
	@touch $@

.venv/.mmdet: .venv/.test requirements/mmdet.txt
	@rm -rf .venv/mmdet
	@$(INSTALL) --no-deps --no-build-isolation --target .venv/mmdet -r requirements/mmdet.txt
	@touch $@

.venv/.docs: .venv/.runtime requirements/docs.txt
	@$(INSTALL) -r requirements/docs.txt
	@touch $@

.venv-openmmlab/.mmcv: requirements/openmmlab.txt
	@echo 'Building mmcv in .venv-openmmlab (once; 12 minutes on two cores, MAX_JOBS=1 to go easy on memory) ...'
	@$(PYTHON) -m venv .venv-openmmlab
	@$(OPENMMLAB_INSTALL) -c requirements/constraints.txt numpy torch
	@$(OPENMMLAB_INSTALL) ninja psutil 'setuptools<81'
	@MMCV_WITH_OPS=1 CFLAGS='-O0 -g0 -w' $(OPENMMLAB_INSTALL) -c requirements/constraints.txt \
		--no-cache-dir --no-build-isolation -r requirements/openmmlab.txt
	@touch $@

.venv-openmmlab/.test: .venv-openmmlab/.mmcv requirements/test.txt requirements/torchvision.txt requirements/constraints.txt setup.py pyproject.toml
	@$(OPENMMLAB_INSTALL) -c requirements/constraints.txt -r requirements/test.txt
	@$(OPENMMLAB_INSTALL) --no-deps -r requirements/torchvision.txt
	@$(OPENMMLAB_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@
