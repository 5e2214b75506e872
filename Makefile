# make demo: the main job on real weights and photographs.   make test: the tests.   Both install what they need first.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FLOOR := .venv-floor
TRIAL := .venv-release
export TORCH_HOME := $(CURDIR)/.cache/torch
WEIGHTS := $(TORCH_HOME)/hub/checkpoints/mobilenet_v2-b0353104.pth

.PHONY: demo test check bench matrix evaluate torture notebooks test-floor release install weights format clean

demo: install weights
	@$(BIN)/torchpeek cam examples/images --model torchvision:mobilenet_v2 \
	    --method cam --method gradcam --method gradcam++ --method layercam --method eigencam \
	    --top 2 --out demo --overwrite

# Weights and photographs that cannot be downloaded do not stop the tests: the tests that need them are skipped.
# TESTS='-n 8' runs eight processes; TESTS='-n 0 tests/cam' runs some tests in this one.
test: install
	@-$(BIN)/python tools/fetch_weights.py
	@-$(BIN)/python tools/fetch_pictures.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal $(or $(TESTS),-n 2)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The whole benchmark, or parts of it: make bench BENCH='--only heatmaps,recording'
bench: install weights
	$(BIN)/pip install --quiet --editable '.[recorders]' --constraint constraints.txt
	$(BIN)/python bench/run.py $(BENCH)

# One or more networks of every family of classifiers, and the table in docs/models.md: half an hour on two cores.
# An interrupted run is resumed. MATRIX='--only resnet --again' checks some networks and does not write the table.
matrix: install
	PYTHONPATH=tests $(BIN)/python -m matrix $(or $(MATRIX),--page)

# Every method and most metrics on real photographs, and docs/leaderboard.md: an hour on two cores.
# It starts with an estimate of its time. An interrupted run is resumed. EVALUATE='--jobs 4' sets the processes.
evaluate: install weights
	$(BIN)/python tools/fetch_weights.py
	-$(BIN)/python tools/fetch_pictures.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/leaderboard.py $(EVALUATE)

# 21,000 attempts to break torchpeek, and the table in docs/reliability.md: half an hour on two cores. An interrupted run
# is resumed. TORTURE='--only 17 99' repeats some attempts, TORTURE='--seed 5 --attempts 2000' makes others.
torture: install
	PYTHONPATH=tests $(BIN)/python -m torture $(or $(TORTURE),--page)

# The pages in docs/notebooks, from the notebooks in examples/, which are run: a minute. NOTEBOOKS='1- 3-' makes some.
notebooks: install weights
	$(BIN)/python tools/fetch_weights.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebook_pages.py $(NOTEBOOKS)

# The tests with the oldest versions that pyproject.toml allows, in an environment of their own.
test-floor: weights
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "torchpeek needs Python 3.11 or newer"; exit 1; }
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e '.[dev]'
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest --dist worksteal -n 2

# Build the sdist, build the wheel from it, and try the wheel in a new environment, outside the checkout. The trial
# installs what a user gets today: no constraints, PyTorch included, about 5 GB. TAG=v0.2.0 must name the built version.
release:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "torchpeek needs Python 3.11 or newer"; exit 1; }
	rm -rf dist
	$(PYTHON) -m venv --clear $(TRIAL)
	$(TRIAL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	$(TRIAL)/bin/python -m build
	$(PYTHON) -m venv --clear $(TRIAL)
	$(TRIAL)/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd / && "$(CURDIR)/$(TRIAL)/bin/python" -I "$(CURDIR)/tools/try_wheel.py" $(TAG)
	rm -rf $(TRIAL)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "torchpeek needs Python 3.11 or newer; name one with PYTHON=python3.12 make ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

weights: $(WEIGHTS)

$(WEIGHTS): | $(INSTALLED)
	$(BIN)/python tools/fetch_weights.py $(@F)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(FLOOR) $(TRIAL) .cache demo build dist .mypy_cache .pytest_cache .ruff_cache
