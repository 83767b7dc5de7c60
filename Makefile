# Every target works alone in a fresh clone: it makes .venv and installs what it needs.
# Another Python: make PYTHON=/path/to/python3.12 test

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python on PATH that is new enough; looked for only when .venv has to be made.
PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
PIP_INSTALL = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
SOAK_SECONDS ?= 600
CODE := academy_hpc launchers tests examples benchmarks

.PHONY: help demo test test-slurm test-gridengine test-globus-compute fuzz faults soak style format types imports check docs bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo      eight agents on Parsl workers talk through a private exchange on this machine'
	@echo 'make test      all tests (ARGS="-k name" chooses some)'
	@echo 'make test-slurm, test-gridengine'
	@echo '               tests on four hosts with a real scheduler, made of namespaces; as root, on Debian or Ubuntu'
	@echo 'make test-globus-compute'
	@echo '               tests on a real endpoint of Globus Compute, through a stand-in of its service; likewise'
	@echo 'make faults    the tests that break things on purpose, then `make soak`'
	@echo 'make soak      random faults for SOAK_SECONDS (600); ARGS="--seed 7" repeats those of a run'
	@echo 'make check     style, types, imports, test: what must pass before a change is done'
	@echo 'make fuzz      coverage-guided fuzzing of frames and routes, FUZZ_SECONDS=60 each'
	@echo 'make format    put the code into the form that `make style` asks for'
	@echo 'make docs      the documentation, in site/'
	@echo 'make bench     speed and memory beside academy-py, in one run'
	@echo 'make clean     remove .venv and everything that was made'

demo: $(VENV)/installed-runtime
	$(BIN)/python -m examples.demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-slurm test-gridengine: test-%: $(VENV)/installed-dev
	$(BIN)/python -m tests.rigs $* python -m pytest tests/$* $(ARGS)

test-globus-compute: $(VENV)/installed-dev
	$(BIN)/python -m tests.rigs globus_compute python -m pytest tests/globus_compute $(ARGS)

faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/faults
	$(MAKE) --no-print-directory soak

soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.soak --seconds $(SOAK_SECONDS) $(ARGS)

# An input that breaks something is written into $(FUZZ)/found-*; give it to the same module to see it again.
FUZZ_SECONDS ?= 60
FUZZ := $(VENV)/fuzz
fuzz: $(VENV)/installed-dev
	$(PIP_INSTALL) atheris
	$(BIN)/python -m tests.security.fuzz.seeds $(FUZZ)
	for target in frames routes; do \
		$(BIN)/python -m tests.security.fuzz.$$target -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=25 \
			-rss_limit_mb=1024 -artifact_prefix=$(FUZZ)/found- $(FUZZ)/$$target || exit 1; \
	done

style: $(VENV)/installed-dev
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix-only --quiet $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

types: $(VENV)/installed-dev
	$(BIN)/mypy

imports: $(VENV)/installed-dev
	$(BIN)/lint-imports --no-logo

check: style types imports test

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) dist site runinfo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python that is missing, too old or without venv is told in one line, before anything is made.
$(BIN)/python:
	@if [ -z '$(PYTHON)' ]; then \
		echo 'No Python 3.11 or newer was found. Install one, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 1; fi
	@command -v '$(PYTHON)' >/dev/null || { \
		echo 'PYTHON=$(PYTHON) is not a program here. Name a Python 3.11 or newer.' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "PYTHON=$(PYTHON) is $$('$(PYTHON)' -V 2>&1 | head -n 1); academy_hpc needs Python 3.11 or newer." >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'PYTHON=$(PYTHON) has no venv module. Install it (Debian and Ubuntu: apt-get install python3-venv) or name another Python.' >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

# The stamps: newer than pyproject.toml where .venv holds what it asks for.
$(VENV)/installed-runtime: pyproject.toml | $(BIN)/python
	@echo 'Installing academy_hpc and what it needs into $(VENV); about a minute, once ...'
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo 'Installing academy_hpc and the development tools into $(VENV); about a minute, once ...'
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/installed-runtime $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) --editable '.[docs]'
	@touch $(VENV)/installed-runtime $@
