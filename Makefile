# make demo    segment a real clip, look at out/demo/overlay.mp4
# make test    everything that must hold: style, types, import arrows, tests
# make setup   only the environment (.venv)
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= .cache/miniature
PROMPTS ?= --prompt "the reflection of the chair in the glass" --prompt "the chair"

.DEFAULT_GOAL := help
.PHONY: help setup test check format demo clean

help:
	@sed -n 's/^# make /make /p' Makefile

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt scripts/setup
	scripts/setup $(VENV)
	@touch $@

test: check
	$(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.cache/miniature: | setup
	$(BIN)/python -m glus.miniature $@

demo: setup $(filter .cache/miniature,$(MODEL))
	$(BIN)/glus segment tests/data/pumavos-chair/chair.mp4 $(PROMPTS) --model $(MODEL) --out out/demo --overwrite
	@echo
	@echo "Look at out/demo/overlay.mp4 (every frame with its masks) and at out/demo/masks.json."
	@$(if $(filter .cache/miniature,$(MODEL)),echo "The model was an untrained miniature: the masks mean nothing. With weights: make demo MODEL=Swindl/GLUS-A")

clean:
	rm -rf $(VENV) .cache out
