# Set-up, tests and the demo of roadloop. `make demo` and `make test` need nothing but Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The CPU build of torch, pinned: an unpinned install would pull gigabytes of CUDA packages.
TORCH ?= torch==2.13.0

# What nerfstudio's nerfacto imports. nerfstudio itself goes in without its other dependencies (2 GB, an old protobuf, a
# second OpenCV, a torchvision for CUDA), which nothing here imports.
NERF_LIBRARIES := imageio msgspec rich websockets
NERF := nerfstudio==1.1.5 nerfacc==0.5.2 viser==0.2.7

.PHONY: install demo test lint clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,ray]" $(NERF_LIBRARIES)
	$(BIN)/python -m pip install --quiet --no-deps $(NERF)
	touch $(STAMP)

demo: install
	$(BIN)/roadloop demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
