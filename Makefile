# `make demo` and `make test` need make and Python 3.10 to 3.13, nothing else: everything is put into .venv.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.10 python3,\
	$(shell $(name) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $(name))))
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
HF_MATRIX := tests/integration/test_hf_matrix.py
SOURCES := $(shell find axonize_core integrations server migrations -name '*.py' -o -name '*.sql' -o -name '*.proto' -o -name '*.xml')

# The wheel is what is tested: the checkout must not come before it on sys.path.
export PYTHONSAFEPATH := 1
# pip's cache belongs to whoever runs make.
export PIP_NO_INPUT := 1

.PHONY: help demo test soak test-sdk test-server test-hf test-vllm test-triton bare matrix lint bench docs migrate dev dev-down clean

help:
	@echo "make demo         serve a small model here and see what comes back from the store"
	@echo "make test         all tests, against the built wheel, with coverage; some: make test TESTS=tests/unit"
	@echo "                  without the real vLLM, whose environment takes 2 min and 4 GB: make test VLLM=skip"
	@echo "                  without the real tritonserver, whose environment takes 1 min and 430 MB: make test TRITON=skip"
	@echo "make soak         an hour and a half: kill -9 in 240 random rounds (ROUNDS), fuzzing of each door (FUZZ_SECONDS),"
	@echo "                  half an hour under load (SOAK_MINUTES)"
	@echo "make test-sdk     tests of what runs beside inference"
	@echo "make test-server  tests of the collector"
	@echo "make test-hf      every task and mode on every version of transformers that is tried, against the docs"
	@echo "make test-vllm    the tests on a real vLLM engine, on CPU, in an environment of its own"
	@echo "make test-triton  the tests on a real tritonserver (x86_64, glibc >= 2.35), in an environment of its own"
	@echo "make bare         the wheel without extras: what it brings, and that it works, with newest and lowest dependencies"
	@echo "make matrix       unit tests and the agent's tests on every Python from 3.10 to 3.13 that is here"
	@echo "make lint         ruff, mypy, import-linter"
	@echo "make bench        the numbers, each beside its limit or peer; some: make bench BENCH=\"receiver clickhouse peers\""
	@echo "                  peers installs rotel and Arize Phoenix first, once: some minutes, 1 GB"
	@echo "make docs         regenerate what is generated"
	@echo "make dev          start a real ClickHouse and PostgreSQL in containers; make dev-down ends them"
	@echo "make migrate      bring store and registry (AXONIZE_STORE, AXONIZE_REGISTRY) to this schema"
	@echo "make clean        remove what make made"

demo: $(VENV)/.wheel
	$(BIN)/axonize demo $(DEMO)

test: $(VENV)/.wheel $(VENV)/.tools
ifdef TESTS
	$(BIN)/pytest $(TESTS)
else
	rm -f .coverage .coverage.*
	$(BIN)/pytest -n 2 --dist loadfile --ignore=$(HF_MATRIX) --ignore=tests/vllm --ignore=tests/tritonserver --cov --cov-report=
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --fail-under=100 --include='*/axonize_core/recorder.py,*/axonize_core/frames.py,*/axonize_core/timeline.py,*/axonize_core/runs.py,*/axonize_core/chunks.py,*/axonize_core/steps.py,*/axonize_core/progress.py,*/axonize_core/phases.py,*/axonize_core/answers.py,*/axonize_core/batches.py,*/axonize_core/executions.py,*/axonize_core/device_times.py,*/axonize_server/spool.py,*/axonize_server/appender.py'
	$(MAKE) test-vllm
	$(MAKE) test-triton
endif

soak: $(VENV)/.wheel $(VENV)/.tools
	AXONIZE_TEST_KILL_ROUNDS=$(or $(ROUNDS),240) $(BIN)/pytest -s tests/e2e/test_kill.py
	-$(PIP) install -q --group fuzz
	for door in http grpc spool; do $(BIN)/python tests/fuzz/run.py $$door $(or $(FUZZ_SECONDS),300) || exit 1; done
	$(BIN)/python tests/benchmark/run.py --strict soak

test-sdk: $(VENV)/.wheel $(VENV)/.tools
	$(BIN)/pytest -n 2 --dist loadfile --ignore=$(HF_MATRIX) --ignore=tests/vllm --ignore=tests/tritonserver -m "not server"

test-server: $(VENV)/.wheel $(VENV)/.tools
	$(BIN)/pytest -n 2 --dist loadfile --ignore=tests/vllm --ignore=tests/tritonserver -m server

# Two versions at a time, each in a process of its own; they are installed into the environment's folder once.
test-hf: $(VENV)/.wheel $(VENV)/.tools
	$(BIN)/pytest -n 2 --dist load $(HF_MATRIX)

# One engine at a time: each has three processes and wants 3 GB of memory.
test-vllm: $(if $(filter skip,$(VLLM)),,$(VENV)/vllm/.wheel)
ifeq ($(VLLM),skip)
	@echo "make: the tests on a real vLLM engine are left out (VLLM=skip)"
else
	$(VENV)/vllm/bin/pytest -n 1 --dist loadfile tests/vllm
endif

# One after the other: most of them share a server.
test-triton: $(if $(filter skip,$(TRITON)),,$(VENV)/triton/.wheel)
ifeq ($(TRITON),skip)
	@echo "make: the tests on a real tritonserver are left out (TRITON=skip)"
else
	$(VENV)/triton/bin/pytest tests/tritonserver
endif

# What the wheel without extras is and does, with the newest and with the lowest dependencies it admits.
bare: $(VENV)/.wheel
	$(BIN)/python tests/bare.py --make $(VENV)/bare build/wheel/axonize-*.whl
	$(BIN)/python tests/bare.py --make $(VENV)/bare-lowest build/wheel/axonize-*.whl --lowest

# Python 3.10 to 3.13, as far as they are here: make matrix, or make matrix MATRIX="--python 3.13 --pytest tests/unit".
matrix: $(VENV)/.wheel
	$(BIN)/python tests/matrix.py $(VENV)/matrix $(CURDIR)/build/wheel/axonize-*.whl $(MATRIX)

lint: $(VENV)/.wheel $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.wheel $(VENV)/.tools $(if $(filter peers,$(BENCH)),$(VENV)/peers/.made)
	$(BIN)/python tests/benchmark/run.py $(BENCH)

docs: $(VENV)/.wheel
	$(BIN)/python -m axonize_core.attributes > docs/attributes.md
	$(BIN)/python -m axonize_core.settings > docs/settings.md
	$(BIN)/python -m axonize_server.settings --env-example > .env.example
	$(BIN)/python -m axonize_server.settings --docs > docs/collector-settings.md

migrate: $(VENV)/.wheel
	$(BIN)/axonize migrate

COMPOSE ?= docker compose
dev:
	$(COMPOSE) -f deploy/compose.yaml up --wait
	@echo "AXONIZE_STORE=http://axonize:axonize@127.0.0.1:8123 AXONIZE_REGISTRY=postgresql://axonize:axonize@127.0.0.1/axonize axonize collector"

dev-down:
	$(COMPOSE) -f deploy/compose.yaml down --volumes

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .tox
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per layer: the environment, the package's dependencies and the demo's host frameworks, the tools, the wheel.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 to 3.13 found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.deps: $(VENV)/.made pyproject.toml
	$(PIP) install -q '.[embedded,grpc]' --group hosts
	@touch $@

$(VENV)/.tools: $(VENV)/.deps
	$(PIP) install -q --group test --group lint
	@touch $@

$(VENV)/.wheel: $(VENV)/.deps $(SOURCES)
	rm -rf build/wheel
	$(PIP) wheel -q --no-deps --wheel-dir build/wheel .
	$(PIP) install -q --no-deps --force-reinstall build/wheel/axonize-*.whl
	@touch $@

$(VENV)/peers/.made: $(VENV)/.deps tests/peers_env.py
	@mkdir -p $(VENV)/peers
	$(BIN)/python tests/peers_env.py $(VENV)/peers
	@touch $@

# An environment of its own, made once; a new wheel is put into it as into the other.
$(VENV)/vllm/.made: $(VENV)/.deps tests/vllm_env.py tests/vllm_tiny.py | $(VENV)/.wheel
	@echo "make: vLLM on CPU goes into $(VENV)/vllm, once: about 2 minutes, 4 GB"
	@$(BIN)/python tests/vllm_env.py $(VENV)/vllm build/wheel/axonize-*.whl
	@touch $@

$(VENV)/vllm/.wheel: $(VENV)/vllm/.made $(VENV)/.wheel
	$(PIP) --python $(VENV)/vllm/bin/python install -q --no-deps --force-reinstall build/wheel/axonize-*.whl
	@touch $@

# The same for Triton; beside it, in numpy2, an environment that must fail.
$(VENV)/triton/.made: $(VENV)/.deps tests/triton_env.py | $(VENV)/.wheel
	@echo "make: tritonserver goes into $(VENV)/triton, once: about 1 minute, 430 MB"
	@$(BIN)/python tests/triton_env.py $(VENV)/triton build/wheel/axonize-*.whl
	@touch $@

$(VENV)/triton/.wheel: $(VENV)/triton/.made $(VENV)/.wheel
	for home in $(VENV)/triton $(VENV)/triton/numpy2; do \
		$(PIP) --python $$home/bin/python install -q --no-deps --force-reinstall build/wheel/axonize-*.whl || exit 1; done
	@touch $@
