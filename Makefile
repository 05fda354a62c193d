# Quarterdeck. `make help` lists the targets; every target does the set-up it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
REPLICAS ?= 3
NODES ?= 3
PORT_BASE ?= 7400
TLS ?= on
STORE ?= embedded
HOSTS ?= loopback
SEEDS ?= 200
VENV := .venv
BIN := $(VENV)/bin
LOCAL_UP = --replicas $(REPLICAS) --nodes $(NODES) --port-base $(PORT_BASE) --store $(STORE) --hosts $(HOSTS) $(if $(filter off,$(TLS)),--no-tls,--tls)
# The locks are whole: --no-deps, or pip, asked for a package with an extra, looks past its pin at what is newest.
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := controlplane node chaos tests

.PHONY: help setup setup-dev cluster status down clean demo chaos soak test check fix lint types layers gen gen-check sim clients transcripts bench dr-drill lock

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'
	@echo; echo "  Variables: REPLICAS=$(REPLICAS) NODES=$(NODES) PORT_BASE=$(PORT_BASE) STORE=$(STORE)|etcd TLS=$(TLS)|off HOSTS=$(HOSTS)|links|netns (make cluster, make demo), SEED= SEEDS=$(SEEDS) (make sim), BENCH=--quick or BENCH='--budget 25' (make bench)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quarterdeck needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@echo "set-up: making the virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is incomplete; on Debian install python3-venv."; rm -rf $(VENV); exit 1; }

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml | $(BIN)/python
	@echo "set-up: installing the locked dependencies (once, about half a minute)"
	@$(PIP) install --no-deps --require-hashes -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@echo "set-up: installing the locked development tools"
	@$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	@touch $@

setup: $(VENV)/.runtime ## Make .venv with the locked dependencies
setup-dev: $(VENV)/.dev ## The same, with the tools for tests and checks

cluster: setup ## Start a local cluster, run examples/web.yaml on it, leave it running
	@$(BIN)/qd local up $(LOCAL_UP) --apply examples/web.yaml

status: setup ## Show replicas, nodes and pods of the running cluster
	@$(BIN)/qd status

down: setup ## Stop the cluster; its data stays in .quarterdeck
	@$(BIN)/qd local down

clean: ## Stop the cluster and remove .quarterdeck, .venv and caches
	@if [ -x $(BIN)/qd ] && [ -d .quarterdeck ]; then $(BIN)/qd local down --destroy; fi
	@rm -rf .quarterdeck $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

demo: setup ## The mission in four acts, with a verdict
	@$(BIN)/qd chaos demo $(LOCAL_UP)

# On hosts of their own where that can be had, or else behind a relay: links are to be cut.
chaos soak: HOSTS := $(if $(filter-out loopback,$(HOSTS)),$(HOSTS),$(if $(filter 0,$(shell id -u)),$(if $(shell command -v nft),netns,links),links))
chaos: setup ## Every experiment that matters, about 10 minutes; ends in a table and reports
	@$(BIN)/qd chaos all $(LOCAL_UP) $(if $(SEED),--seed $(SEED)) $(if $(REPEAT),--repeat $(REPEAT)) $(foreach name,$(ONLY),--only $(name))

soak: setup ## Random faults for HOURS hours, a verdict every few minutes
	@$(BIN)/qd chaos soak $(LOCAL_UP) --hours $(or $(HOURS),1) $(if $(SEED),--seed $(SEED))

test: setup-dev ## All tests
	@$(BIN)/python -m pytest
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.sim --seeds $(SEEDS)

sim: setup-dev ## Simulate SEEDS seeds, or replay one: make sim SEED=7
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

clients: setup-dev ## The Python clients of etcd (aetcd, etcd3, etcd3gw) run their own tests against us
	@$(BIN)/python -m tests.clients

transcripts: setup-dev ## Every sub-command of etcdctl, and the Python clients, against us; writes docs/transcripts.md
	@$(BIN)/python -m tests.clients.transcripts --port-base $(PORT_BASE)

bench: setup-dev ## Ours beside a real etcd on this machine, about an hour; writes docs/benchmarks.md
	@$(BIN)/python -m chaos.bench --out docs/benchmarks.md $(BENCH)

dr-drill: setup-dev ## Lose everything on purpose and bring it back, beside a real etcd; a few minutes
	@$(BIN)/python -m chaos.drill $(DRILL)

check: lint types layers gen-check ## Lint, types, layers, generated code fresh

lint: setup-dev
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)

types: setup-dev
	@$(BIN)/mypy

layers: setup-dev
	@$(BIN)/lint-imports --no-logo

fix: setup-dev ## Format, and mend what the linter can mend
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

# protoc maps proto/ to the import path controlplane/pb, so that generated modules import each other there.
define PROTOC
$(BIN)/python -m grpc_tools.protoc -Icontrolplane/pb=proto --python_out=$(1) --grpc_python_out=$(1) \
	--plugin=$(BIN)/protoc-gen-mypy --plugin=$(BIN)/protoc-gen-mypy_grpc --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	$$(cd proto && find . -name '*.proto' | LC_ALL=C sort | sed 's|^\./|controlplane/pb/|')
grep -L 'class .*Stub' $$(find $(1)/controlplane/pb -name '*_pb2_grpc.py') | while read -r f; do rm -f "$$f" "$${f}i"; done
find $(1)/controlplane/pb -mindepth 1 -type d -not -name __pycache__ -exec touch {}/__init__.py \;
endef

gen: setup-dev ## Generate controlplane/pb from proto/
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && $(MAKE) --no-print-directory gen-into OUT="$$tmp" && \
	  cp -r "$$tmp/controlplane/pb/." controlplane/pb/

gen-check: setup-dev
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && mkdir -p "$$tmp" && $(MAKE) --no-print-directory gen-into OUT="$$tmp" && \
	  diff -r -x __pycache__ -x __init__.py "$$tmp/controlplane/pb" controlplane/pb >"$$tmp/diff" || \
	  { head -20 "$$tmp/diff"; echo "controlplane/pb is not what proto/ says: run make gen and commit"; exit 1; }

.PHONY: gen-into
gen-into:
	@$(call PROTOC,$(OUT))

lock: setup-dev ## Resolve requirements/*.txt anew (needs the uv command)
	@uv pip compile pyproject.toml --group build --universal --python-version 3.11 --generate-hashes -q -o requirements/runtime.txt
	@uv pip compile pyproject.toml --group build --group dev --universal --python-version 3.11 --generate-hashes -q -o requirements/dev.txt
