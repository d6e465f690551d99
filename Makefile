# `make` lists what there is. Everything runs from a fresh clone: the environment is made on first use.
.DEFAULT_GOAL := help
.PHONY: help demo up test fuzz lint docs bench bench-smoke image three-hosts three-hosts-down clean
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

IMAGE ?= portcall
BASE_IMAGE ?= python:3.11-slim
PYTHON ?= python3
COUNT ?= 10000000
SEED ?= 1

bin := .venv/bin
ready := .venv/.ready
root := $(filter 0,$(shell id -u))
# With the directories: a module that was removed shows only there.
sources := $(shell find discovery resolver registrar -name __pycache__ -prune -o \( -type d -o -name '*.py' \) -print)
benchmarks := $(sort $(wildcard benchmarks/bench_*.py))
lab := $(bin)/python examples/three-hosts/lab.py

install-venv := { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install python3-venv; } >&2

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

demo: $(ready) ## a guided tour on this machine; needs neither Docker nor Consul
	@$(bin)/python examples/demo.py

up: $(ready) ## run the registrar and the resolver on this machine, for real
	@$(bin)/registrar up

test: $(ready) ## every test this machine can run; as root that is all of them (TESTS= for some)
	@$(if $(root),tools/get-docker; CONSUL_BIN=$$(tools/get-consul); export CONSUL_BIN;) $(bin)/pytest $(TESTS)

fuzz: $(ready) ## COUNT odd packets and replies against the resolver, from SEED on
	@$(bin)/python -m tests.fuzz.resolver --count $(COUNT) --seed $(SEED)

lint: .venv/.pyright ## style, types and import rules
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/python tools/check-pyright
	$(bin)/python tools/make-reference --check
	$(bin)/python tools/make-httpx2 --check
	$(bin)/lint-imports

docs: $(ready) ## write docs/client-reference.md anew, from the docstrings
	@$(bin)/python tools/make-reference

bench: .venv/.peers ## the benchmarks, side by side with peers
	@$(if $(root),tools/get-peers;) for benchmark in $(benchmarks); do $(bin)/python $$benchmark; done

bench-smoke: $(ready) ## each benchmark for a moment, to see that it runs
	@for benchmark in $(benchmarks); do $(bin)/python $$benchmark --smoke; done

image: build/wheels/.ready ## the Docker image of registrar, resolver and discovery (IMAGE=, BASE_IMAGE=)
	@docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) --tag $(IMAGE) .

three-hosts: build/wheels/.ready ## three hosts with Docker and Consul on this machine (root, Linux)
	@tools/get-docker
	@$(lab) up

three-hosts-down: $(ready) ## remove the three hosts
	@$(lab) down

clean: ## remove what was made here
	rm -rf .venv build

# Made again when what it is made from has changed. --no-deps: the lock file has said everything.
$(ready): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'portcall needs Python 3.11 or newer; say which with PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(if $(root),$(install-venv),\
	  { echo 'python3-venv is missing; as root: apt-get install python3-venv' >&2; exit 1; })
	@$(PYTHON) -m venv .venv
	@$(bin)/pip install --quiet --require-hashes --requirement requirements.lock
	@$(bin)/pip install --quiet --no-deps --editable .
	@touch $@

# Peers to compare with, for the benchmarks alone.
.venv/.peers: $(ready) benchmarks/requirements.lock
	@$(bin)/pip install --quiet --require-hashes --requirement benchmarks/requirements.lock
	@touch $@

# As large as everything else together, so `make demo` does without.
.venv/.pyright: $(ready) tests/typing/requirements.lock
	@$(bin)/pip install --quiet --require-hashes --requirement tests/typing/requirements.lock
	@touch $@

build/wheels/.ready: $(ready) $(sources) tools/get-wheels
	@$(bin)/python tools/get-wheels build/wheels
	@touch $@
