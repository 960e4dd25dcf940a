# `make demo` and `make test` do everything on a fresh machine that has Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-oldest test-newest fuzz comfyui lint docs clean

demo: $(VENV)/run.stamp  ## upscale examples/*.png with the embedded model; results and a comparison land in demo/
	$(BIN)/samdiffsr upscale -i examples -o demo --overwrite
	$(BIN)/python examples/compare.py demo

test: $(VENV)/dev.stamp  ## the whole test suite
	$(BIN)/python -m pytest -n 2

test-oldest test-newest: $(VENV)/torch.stamp  ## the test suite with the oldest versions that are allowed, or the newest that there are
	$(PIP) nox
	$(BIN)/python -m nox -s $(@:test-%=%)

fuzz: $(VENV)/dev.stamp  ## nightly: 5,000 damaged picture files
	$(BIN)/python tests/fuzz.py 5000

COMFYUI ?= ComfyUI
COMFYUI_PYTHON ?= python3
comfyui:  ## nightly: the nodes in a real ComfyUI, whose Python has samdiffsr too
	$(COMFYUI_PYTHON) tests/integrations/real_comfyui.py $(COMFYUI)

lint: $(VENV)/dev.stamp  ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp  ## the documentation site, into site/
	$(BIN)/properdocs build --strict -f mkdocs.yml

# torch first and alone: asked for by its exact version it is the CPU build where one is offered.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	touch $@

$(VENV)/run.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/run.stamp

$(VENV)/docs.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo site
