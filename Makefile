# `make` lists the targets. Those that need .venv make it from requirements/ first (1 to 2 minutes).
PYTHON ?= python3.11
VENV ?= .venv
# gpu.txt where an NVIDIA driver is present, else cpu.txt; override with `make demo MACHINE=cpu`.
MACHINE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
READY = $(VENV)/ready-$(MACHINE)
LOCK = requirements/$(MACHINE).lock
PIP = $(VENV)/bin/pip install --disable-pip-version-check --quiet --no-compile
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/pytest

.DEFAULT_GOAL := help
.PHONY: help install demo format lint types test test-fast test-cluster test-gpu fuzz docs check benchmark lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## make .venv (1 to 2 min)

demo: $(READY) ## simulated app, frozen LLM, two ranks: bare against LLM4MSR (4 min)
	$(VENV)/bin/msrec demo

format: $(READY) ## format the code (1 s)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lint: $(READY) ## check format and style (1 s)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/hadolint Dockerfile

types: $(READY) ## type-check the package (30 s)
	.ci/types

test: $(READY) ## all tests but those on a cluster (6 min on 2 cores)
	$(PYTEST) -n logical --maxprocesses 8 --dist loadfile

test-fast: $(READY) ## tests without training, servers and subprocesses (under 1 min)
	$(PYTEST) -n logical --maxprocesses 8 --dist loadfile -m "not slow"

test-cluster: $(READY) ## two hosts and a two-node Slurm in network namespaces; needs root (3 min)
	PYTEST=$(VENV)/bin/pytest OMP_NUM_THREADS=1 tests/cluster/run

fuzz: $(READY) ## property tests of the boundaries with EXAMPLES=2000 new inputs each (10 min)
	MSREC_FUZZ_EXAMPLES=$(or $(EXAMPLES),2000) $(PYTEST) -n logical --maxprocesses 8 --timeout 3600 \
	    tests/boundaries

docs: $(READY) ## build the documentation site in build/site (40 s)
	.ci/docs

test-gpu: $(READY) ## one GPU against the CPU, speeds; DEVICE=cpu tests the command (10 min)
	$(VENV)/bin/msrec bench gpu --device $(or $(DEVICE),cuda)

check: ## everything that CI runs (12 min)
	.ci/run

benchmark: $(READY) ## docs/results/benchmark.md from RAW=folder (a night; resumes)
	$(VENV)/bin/msrec bench table $(RAW) --jobs 2 --page docs/results/benchmark.md

# The lock saves pip two minutes of resolving. Where it does not fit (another Python, CUDA wheels of
# torch), pip resolves.
$(READY): requirements/base.txt requirements/$(MACHINE).txt requirements/dev.txt pyproject.toml hatch_build.py
	$(PYTHON) -m venv --clear $(VENV)
	{ test -e $(LOCK) && $(PIP) --no-deps -r $(LOCK) && $(VENV)/bin/pip check; } || \
	    $(PIP) -r requirements/$(MACHINE).txt -r requirements/dev.txt
	# pip compiles on one core. Some packages hold files for other Pythons, which do not compile.
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(PIP) --no-deps --no-build-isolation -e .
	$(VENV)/bin/pip check
	touch $@

lock: ## write requirements/cpu.lock from .venv, after pins changed and make install resolved them
	{ echo "# Every package of .venv on Python 3.11, by make lock."; echo ./requirements/fbgemm-gpu-shim; \
	    $(VENV)/bin/pip freeze --all --exclude-editable | sed "/^pip==/d" | sed '/fbgemm-gpu @/d; s/+cpu$$//'; } >requirements/cpu.lock
