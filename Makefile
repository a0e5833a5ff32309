PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
export DAGSTER_DISABLE_TELEMETRY := yes

.DEFAULT_GOAL := help
.PHONY: help install run plan test oracles-install slow chaos daemon cluster ui-test bench bench-marks growth lint format ui lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

install: $(READY) ## Create .venv with the locked dependencies and this project

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-cache-dir --constraint requirements.lock --editable '.[dev]'
	@touch $(READY)

run: $(READY) ## Make the sample pictures with the local sandbox: no account, no money
	@$(BIN)/ideogram-pipeline run

plan: $(READY) ## Say what a run would do and cost
	@$(BIN)/ideogram-pipeline plan

test: $(READY) ## Run the tests
	$(BIN)/pytest -n 2

oracles-install: ## Install fal's JavaScript client, Azure's emulator and sharp, for the tests that talk to them
	npm ci --prefix tests/oracles/javascript --no-fund --no-audit
	npm ci --prefix tests/network/azurite --no-fund --no-audit --ignore-scripts
	npm ci --prefix tests/marks/javascript --no-fund --no-audit

slow: $(READY) ## Run the tests of whole runs, and those that start the command again and again
	$(BIN)/pytest -n 2 -m slow tests

chaos: $(READY) ## Kill and race real runs, fail their disks and clocks; KILLS=200 and HISTORIES=20000 do more of it
	KILLS=$(or $(KILLS),20) $(BIN)/pytest -n 2 -m chaos tests/chaos
	HISTORIES=$(or $(HISTORIES),2000) $(BIN)/pytest -n 2 tests/adversary

daemon: $(READY) ## Let Dagster's daemon and web server run, retry, cancel and backfill batches
	$(BIN)/pytest -m daemon tests/daemon

cluster: $(READY) ## Spread batches over workers, Postgres, S3 and Kubernetes Jobs on loopback, and kill some
	$(BIN)/pytest -m cluster tests/cluster

ui-test: $(READY) ## Look at Dagster's UI with a headless Chromium, which has to be there
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[browser]'
	$(BIN)/pytest -m ui tests/ui

bench: $(READY) ## Measure it beside fal's own client; BENCH="--mode throughput", or memory, for the other figures
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-marks: $(READY) ## Measure what marking and signing a picture takes, beside c2pa-python alone
	$(BIN)/python benchmarks/marks.py

growth: $(READY) ## Measure what one more batch costs at 1,000, 10,000 and 100,000 rows; GROWTH="--rows 1000"
	$(BIN)/python benchmarks/growth.py $(GROWTH)

lint: $(READY) ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(READY) ## Open Dagster's web UI on this project, with the runs of `make run`
	@mkdir -p var/dagster && cp -n ideogram_pipeline/dagster.yaml var/dagster/
	DAGSTER_HOME="$${DAGSTER_HOME:-$(CURDIR)/var/dagster}" $(BIN)/dagster dev --host 127.0.0.1

lock: $(READY) ## Compile requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --all-extras --no-emit-index-url --no-header --no-annotate \
		--upgrade --output-file requirements.lock pyproject.toml

clean: ## Remove what tests and linters left, and ./var if it is the sandbox's and you say yes
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@test -d var || exit 0; \
	paid=$$(find -L var -name store.json -exec sh -c 'grep -Eq "\"backend\" *: *\"sandbox\"" "$$1" || echo "$$1"' _ {} \; ; \
		find -L var -type d \( -name ledger -o -name images \) -exec sh -c 'test -f "$${1%/*}/store.json" || echo "$$1"' _ {} \;) \
		|| paid="what can't be read"; \
	if [ -n "$$paid" ]; then echo "var stays: it may hold pictures that were paid for:"; echo "$$paid"; exit 0; fi; \
	printf 'Remove var, with the pictures that the sandbox drew and the records of its runs? [y/N] '; read -r answer || echo; \
	case "$$answer" in y|Y|yes) rm -rf var ;; *) echo "var stays." ;; esac
