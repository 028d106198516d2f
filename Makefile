# Everything a checkout needs: `make help` lists it. Wants make, a Python >= 3.11 and pip's index.

.DELETE_ON_ERROR:
.SUFFIXES:

# The first Python on PATH that is new enough; another one: make PYTHON=python3.13 venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := -m pip --disable-pip-version-check --no-input install -qq
# Given on: make test ARGS='-k image -x'
ARGS ?=

# Tests start many Pythons, and without this each compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r target text; do \
		printf '%-14s%s\n' "$$target" "$$text"; done

# --- environments -------------------------------------------------------------------------------

define new_venv
	@test -n "$(PYTHON)" || { echo 'No Python >= 3.11 on PATH; name one: make PYTHON=/path/to/python3 $@' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python $(PIP_INSTALL) --require-hashes -r $(2)
	@touch $@
endef

# The lock decides what is in the environment: made anew when it changes.
$(VENV)/.locked: requirements/dev.txt
	$(call new_venv,$(VENV),requirements/dev.txt)

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv-protos/.locked: requirements/protos.txt
	$(call new_venv,.venv-protos,requirements/protos.txt)

.venv-lock/.locked: requirements/lock.txt
	$(call new_venv,.venv-lock,requirements/lock.txt)

.PHONY: venv
venv: $(VENV)/.installed ## set up .venv from the lock, with this checkout in it

.PHONY: system-deps
system-deps: ## install the programs that the kernel tests need (apt, root; else lists the missing ones)
	@sh tools/system-deps.sh

.PHONY: lock
lock: .venv-lock/.locked ## write requirements/*.txt from pyproject.toml (UPGRADE=1: newest versions)
	@UV=.venv-lock/bin/uv sh tools/lock.sh $(if $(UPGRADE),--upgrade)

# --- checks -------------------------------------------------------------------------------------

.PHONY: test
test: venv ## run all tests (ARGS='-k image -x' goes to pytest)
	@PYTHON=$(BIN)/python sh tools/test.sh $(ARGS)

.PHONY: test-fast
test-fast: venv ## run the tests that start no program and need no root
	@$(BIN)/python -m pytest -n auto \
		$(addprefix --ignore tests/,kernel criu node fleet report) \
		--hypothesis-profile fast -m 'not (slow or kernel or criu or alone)' $(ARGS)

.PHONY: fuzz
fuzz: venv ## fuzz every target for a minute (ARGS='cache sql --runs 1000000')
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: lint
lint: venv check-protos ## ruff, mypy, the layers of imports, the generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: venv ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: wheel-test
wheel-test: venv ## build sdist and wheel, run the wheel in a clean environment
	@PYTHON=$(abspath $(BIN))/python sh tools/wheel-test.sh

.PHONY: demo
demo: venv ## the main job on a process that it starts
	$(BIN)/python demo/run.py $(ARGS)

.PHONY: bench
bench: venv ## the benchmark
	$(BIN)/python bench/run.py $(ARGS)

.PHONY: filesystems
filesystems: venv ## write docs/filesystems.md from a test run
	IRMAPDB_REQUIRE_KERNEL=1 IRMAPDB_WRITE_TABLE=docs/filesystems.md \
		$(BIN)/python -m pytest -q tests/criu/test_filesystems_table.py

.PHONY: json-docs
json-docs: venv ## write the tables of docs/json.md from irmapdb/schemas
	$(BIN)/python tools/json_docs.py docs/json.md

.PHONY: man
man: venv ## write the man pages into build/man (look at one: man -l build/man/irmapdb.1)
	$(BIN)/python tools/manpages.py build/man

# --- generated code -----------------------------------------------------------------------------

.PHONY: protos
protos: .venv-protos/.locked ## write irmapdb/_pb from protos/
	@PYTHON=.venv-protos/bin/python sh tools/protos.sh irmapdb/_pb

.PHONY: check-protos
check-protos: .venv-protos/.locked ## check that irmapdb/_pb is the output of protos/
	@PYTHON=.venv-protos/bin/python sh tools/protos.sh --check irmapdb/_pb

.PHONY: sql
sql: venv ## write irmapdb/store/compiled.py from the statements in tools/store_statements.py
	@$(BIN)/python -m tools.compile_sql irmapdb/store/compiled.py

.PHONY: clean
clean: ## remove all files that make has made
	rm -rf .fuzz .venv .venv-protos .venv-lock build dist
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
