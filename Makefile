# Two commands on a fresh machine (Python 3.11, make, a C++ compiler): `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
# gpu.txt where an NVIDIA driver is there, else cpu.txt; override with `make demo MACHINE=cpu`.
MACHINE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
READY = $(VENV)/ready-$(MACHINE)

.PHONY: demo test test-cluster check benchmark install

demo: $(READY) ## synthetic app, frozen LLM, two ranks: bare against LLM4MSR
	$(VENV)/bin/msrec demo

test: $(READY) ## every test
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n logical --maxprocesses 8 --dist loadfile

test-cluster: $(READY) ## two hosts and a two-node Slurm in network namespaces; needs root
	PYTEST=$(VENV)/bin/pytest OMP_NUM_THREADS=1 tests/cluster/run

check: ## what CI runs: format, lint, types, wheel, tests, tests on a cluster
	.ci/run

benchmark: $(READY) ## docs/benchmark.md, from RAW=folder; takes a night, resumes
	$(VENV)/bin/msrec bench table $(RAW) --trials 3 --seeds 3 --jobs 2 --page docs/benchmark.md

install: $(READY)

$(READY): requirements/base.txt requirements/$(MACHINE).txt requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet -r requirements/$(MACHINE).txt -r requirements/dev.txt -e .
	$(VENV)/bin/pip check
	touch $@
