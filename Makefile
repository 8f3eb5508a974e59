# make demo    segment a drawn and a real clip from phrases, look at the overlay videos
# make test    everything that must hold: style, types, import arrows, tests
# make setup   only the environment (.venv)
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= glus-tiny

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

demo: setup
	$(BIN)/python -m glus.demo out/demo/drawn.mp4 >/dev/null
	$(BIN)/glus segment out/demo/drawn.mp4 --model $(MODEL) --out out/demo/drawn --overwrite \
	  --prompt "the clock that goes down" --prompt "the clock that moves up" --prompt "the fish"
	$(BIN)/glus segment tests/data/pumavos-chair/chair.mp4 --model $(MODEL) --out out/demo/chair --overwrite \
	  --prompt "the reflection of the chair in the glass" --prompt "the chair"
	@echo
	@echo "Look at out/demo/drawn/overlay.mp4 and out/demo/chair/overlay.mp4: every frame with its masks."
	@if [ "$(MODEL)" = glus-tiny ]; then \
	  echo "glus-tiny has only seen drawn objects: trust the first, not the second."; \
	  echo "On real video: make demo MODEL=Swindl/GLUS-A"; fi

clean:
	rm -rf $(VENV) out
