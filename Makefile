# Every target is one line of work; `make setup` needs only Python 3.11+, git and make.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(STAMP)  ## a working checkout in .venv, exact versions from constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet 'uv>=0.5'
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,gpu,rtx,openvino]'
	touch $(STAMP)

lint: setup      ## style, formatting, the Dockerfile
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/hadolint --config .hadolint.yaml Dockerfile.cuda

types: setup     ## pyright
	$(BIN)/pyright

test: setup      ## the fast suite, no GPU needed
	$(BIN)/pytest

test-slow: setup ## kill suites, builds on real clips, browser
	$(BIN)/pytest -m slow

test-gpu: setup  ## what needs a CUDA device; a missing one is a failure
	DFM_REQUIRE_GPU=1 $(BIN)/pytest -m gpu

demo: setup      ## a small data set from procedural faces, out/demo/report.html
	$(BIN)/dfm-engine render --out out/demo-clips --drivers 2 --sources 10 --frames 28
	$(BIN)/dfm-engine build-dataset --recipe demo --weights demo --real out/demo-clips/real \
	  --driving out/demo-clips/driving --out out/demo
	$(BIN)/dfm-engine dataset verify out/demo
	@echo "Look at out/demo/report.html; the data set is out/demo/manifest.parquet and data/"

bench: setup     ## every benchmark, out/bench/report.html
	$(BIN)/dfm-engine bench --out out/bench

wheel: setup     ## one wheel with every package
	$(BIN)/uv build --wheel

.PHONY: help setup lint types test test-slow test-gpu demo bench wheel
