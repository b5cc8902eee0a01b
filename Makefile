SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
MTIL := $(VENV)/.mtil
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# pip would compile on one core. What is not Python here, as a file of torch's tests, is not imported.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x /tests/ $(VENV)/lib mtil tune cluster || true
# One more than there are cores: some tests wait for processes that they have started.
UNIT := $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count(), 8) + 1)')
# The folder or file to test. Slow tests run too if it is given.
TESTS ?=
UNIT_TESTS := not integration and not e2e$(if $(TESTS),, and not slow)
# Begun first, so that neither process is left alone with one of them.
LONGEST := $(addprefix tests/integration/test_,circle.py train.py tune_drivers.py)

export RAY_AUTH_MODE ?= disabled
# pytest keeps the tests as it has compiled them: a quarter of the time to begin.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo unit test test-long check fix clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP)  ## set up .venv with everything that development needs

$(MTIL): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) --editable '.[ray,tune,cluster,report]'
	$(COMPILE)
	touch $@

$(STAMP): $(MTIL)
	$(PIP) --group dev
	$(COMPILE)
	touch $@

demo: $(MTIL)  ## phantoms → data set → training → figures → predictions → circle, in $(DEMO)
	rm -rf $(DEMO)
	$(BIN)/mtil phantom $(DEMO)/images --num-images 160 --seed 0
	$(BIN)/mtil prepare $(DEMO)/images --layout busi --to $(DEMO)/data --image-size 96
	$(BIN)/mtil train --config demo --data $(DEMO)/data --run $(DEMO)/run --fold 0
	$(BIN)/mtil evaluate --run $(DEMO)/run
	$(BIN)/mtil report $(DEMO)/run --to $(DEMO)/report.html
	$(BIN)/mtil predict $(DEMO)/run $(DEMO)/images/malignant $(DEMO)/predictions
	$(BIN)/python docs/sheet.py $(DEMO)/predictions $(DEMO)/predictions.png
	$(BIN)/mtil circle --config demo --data $(DEMO)/data --run $(DEMO)/circle --folds 0,1 --train.num-epochs 2 --train.cpus-per-worker 0.75
	@echo
	@echo "Report:       $(DEMO)/report.html"
	@echo "Metrics:      $(DEMO)/run/evaluation.json"
	@echo "Training:     $(DEMO)/run/rounds/0/fold-0/history.jsonl"
	@echo "Predictions:  $(DEMO)/predictions/predictions.csv"
	@echo "Overlays:     $(DEMO)/predictions/overlays, some together in $(DEMO)/predictions.png"
	@echo "Circle:       $(BIN)/mtil status --run $(DEMO)/circle"

check: install  ## style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: install  ## format the code and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: install  ## the fast loop: quick tests without Ray, or all of one folder (TESTS=tests/unit/circle)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses $(UNIT) --dist worksteal --durations=5 -m "$(UNIT_TESTS)" $(TESTS)

test: install  ## what CI runs
	$(MAKE) --jobs 2 check unit UNIT_TESTS="not integration and not e2e"
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=10 \
		-m "(integration or e2e) and not long" tests/e2e $(LONGEST) tests/integration

test-long: install  ## what takes too long for every change
	$(BIN)/python -m pytest -q -m long

clean:  ## delete what `make demo` made
	rm -rf $(DEMO)
