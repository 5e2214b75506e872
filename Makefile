# make demo: the main job on real weights and photographs.   make test: the tests.   Both install what they need.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FLOOR := .venv-floor
export TORCH_HOME := $(CURDIR)/.cache/torch
WEIGHTS := $(TORCH_HOME)/hub/checkpoints/mobilenet_v2-b0353104.pth

.PHONY: demo test check bench matrix evaluate test-floor install weights format clean

demo: install weights
	@$(BIN)/torchpeek cam examples/images --model torchvision:mobilenet_v2 \
	    --method cam --method gradcam --method gradcam++ --method layercam --method eigencam \
	    --top 2 --out demo --overwrite

test: install
	@-$(BIN)/python tools/fetch_weights.py
	@-$(BIN)/python tools/fetch_pictures.py
	$(BIN)/python -m pytest

# What CI runs besides the tests.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install weights
	$(BIN)/pip install --quiet --editable '.[recorders]' --constraint constraints.txt
	$(BIN)/python bench/run.py

# One network or more of every family of classifiers, and the page about them: half an hour on two cores. Goes on where
# it was interrupted; MATRIX='--only resnet --again' looks into a part, and leaves the page alone.
matrix: install
	PYTHONPATH=tests $(BIN)/python -m matrix $(or $(MATRIX),--page)

# The methods by every metric on real photographs, and the page about it: an hour on two cores. Says first how long; goes
# on where it was interrupted.
evaluate: install weights
	$(BIN)/python tools/fetch_weights.py
	-$(BIN)/python tools/fetch_pictures.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/leaderboard.py $(EVALUATE)

# The oldest versions that pyproject.toml allows, in an environment of their own.
test-floor: weights
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "torchpeek needs Python 3.11 or newer"; exit 1; }
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-floor.txt -e '.[dev]'
	$(FLOOR)/bin/python -m pytest

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
	rm -rf $(VENV) $(FLOOR) .cache demo build dist .mypy_cache .pytest_cache .ruff_cache
