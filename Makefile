# The commands of a newcomer and of CI. `make demo` and `make test` install and build what is missing first;
# a second run downloads and builds nothing. Nothing is written outside this checkout but Debian packages.

PYTHON      := /usr/bin/python3
VENV        := .venv/bin
DEMO        := $(VENV)/nicagent emulate tests/e2e/demo.toml -- $(VENV)/python -m tests.e2e.demo
PYTEST_ARGS ?=
SECONDS     ?= 300

.PHONY: help setup clients guest-kernel stage1 stage1-auth image demo test lint bench campaign fuzz procedures clean

help:
	@echo "make demo      two emulated servers, driven by virsh, from define to undefine"
	@echo "make test      lint, then the whole test suite (what CI runs)"
	@echo "make bench     figures beside those of peers, into bench.json"
	@echo "make campaign  the long form of the fault tests"
	@echo "make fuzz      the long form of the fuzz tests, SECONDS=300 in all"
	@echo "make procedures  docs/libvirt-procedures.md: what becomes of a call to each of libvirt's procedures"
	@echo "make setup     Debian packages and .venv only;  make image: OS image and stage-1 only;"
	@echo "make clients   other projects' programs for the client tests only"
	@echo "make clean     forget what was built (.cache); the .venv stays"

setup:
	@[ -x $(PYTHON) ] || { echo "python3 is missing; as root, run: apt-get update && apt-get install -y python3" >&2; exit 1; }
	@$(PYTHON) -m images.setup

clients: setup
	@$(PYTHON) -m images.clients

guest-kernel: setup
	@$(PYTHON) -m images.guest_kernel

stage1: setup
	@$(PYTHON) -m boot.stage1

stage1-auth: setup
	@$(PYTHON) -m boot.stage1 auth

image: setup stage1
	@$(PYTHON) -m images.debian

demo: setup image
	$(DEMO)

lint: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

test: setup clients stage1-auth image lint
	$(VENV)/python -m pytest -m "not slow" $(PYTEST_ARGS)

bench: setup image
	$(VENV)/python -m tests.bench

campaign: setup image
	$(VENV)/python -m pytest -m slow $(PYTEST_ARGS)

fuzz: setup
	$(VENV)/python -m tests.fuzz --seconds $(SECONDS)

procedures: setup
	$(VENV)/python -m hypervisor_shim.procedure_table nicagent.northbound.libvirt:MetalDriver docs/libvirt-procedures.md

clean:
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
