# Needs Python 3.11 or later and make; everything else, uv included, goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/airflow-3.3.txt
UV := $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help venv test demo bench lint format lock clean

help:  ## Show what there is to make.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(VENV)/.installed  ## Make the environment: the pinned requirements and this checkout.

$(VENV)/.installed: $(LOCK) requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --require-hashes $(LOCK)
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

test: venv  ## Run the tests.
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

demo: venv  ## Land a day of a simulated API in a real S3 server, through Airflow.
	@$(BIN)/python scripts/demo.py $(ARGS)

bench: venv  ## Measure the operator beside a bare floor.
	$(BIN)/python benchmarks/year.py $(ARGS)

lint: venv  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv  ## Mend what can be mended automatically.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: venv  ## Renew the pinned requirements.
	VIRTUAL_ENV=$(VENV) $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-emit-find-links --upgrade \
		--extra simulator --group dev --constraint requirements/airflow-3.3.in --output-file $(LOCK) \
		pyproject.toml requirements/build.in
	VIRTUAL_ENV=$(VENV) $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --no-emit-find-links --upgrade --output-file requirements/uv.txt requirements/uv.in

clean:  ## Remove what was made here.
	rm -rf $(VENV) .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
