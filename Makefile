# Every target works on a machine that has only Python: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# an environment of its own for the compilers of other hardware: where they are installed, jax looks for that hardware
TARGETS_VENV := .venv-targets
# another for clients of the server that others wrote: they need a hundred packages that nothing else here does
CLIENTS_VENV := .venv-clients
# an environment with Zig's C++ compiler, and the oldest jaxlib that is allowed: wheels are built with its headers
WHEELS_VENV := .venv-wheels
WHEELS_NEED := ziglang==0.17.1 jax==0.10.2 jaxlib==0.10.2
# a GGUF file to run, and what it continues; without either the embedded model answers a question
MODEL ?=
PROMPT ?=
BENCH_MODELS ?= bench-models
# a Python that has llama-cpp-python, to measure against; without it the extra "peers" is installed: llama.cpp is built
PEER_PYTHON ?=
# the program llama-server, to load in turn with ours
PEER_SERVER ?=
# XLA's older kernels take a third of the time to compile, a program in one part a fifth less, one that LLVM does not
# optimize half; what is exact stays exact, and what users run is tested by those marked "shipped"
QUICK := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=0
SERVE_ARGS ?=
ARGS ?= --max_tokens=64 --temperature=0.3 --seed=1

.PHONY: run serve test test-more test-changed test-targets test-clients lint bench bench-serving bench-gpu notebooks wheels test-wheels clean

run: $(VENV)/installed
	@$(PY) run.py generate $(if $(MODEL),--model="$(MODEL)") $(if $(PROMPT),--prompt="$(PROMPT)") $(ARGS)

# on http://127.0.0.1:8080 until Ctrl-C; SERVE_ARGS are its flags
serve: $(VENV)/installed-serve
	@$(PY) run.py serve $(if $(MODEL),--model="$(MODEL)") $(SERVE_ARGS)

# every proof once, in 720 seconds of processor time or it fails: six minutes of two idle cores, once there is something
# in .cache/tests. The first time, all that tests run is compiled, and 5 times as much is allowed.
# A machine whose processors are slower gets more time by as much.
test: $(VENV)/installed-dev
	XLA_FLAGS="$(QUICK)" $(PY) -m pytest -n 2 --dist worksteal --budget=570 -m "not product and not targets and not clients and not shipped"
	$(PY) -m pytest --budget=150 -m "shipped and not product"

# the full products, of which `make test` runs some cases; WITHIN is minutes after which no further one begins
test-more: $(VENV)/installed-dev
	$(PY) -m pytest -m "shipped and product"
	XLA_FLAGS="$(QUICK)" $(PY) -m pytest -n 2 --dist worksteal $(if $(WITHIN),--within=$(WITHIN)) -m "product and not shipped"

# the tests that import what differs from the last commit, directly or not
test-changed: $(VENV)/installed-dev
	XLA_FLAGS="$(QUICK)" $(PY) -m pytest --changed -m "not product and not targets and not clients and not shipped"

test-targets: $(TARGETS_VENV)/installed
	$(TARGETS_VENV)/bin/python -m pytest -m targets tests/compile/targets

test-clients: $(CLIENTS_VENV)/installed
	XLA_FLAGS="$(QUICK)" $(CLIENTS_VENV)/bin/python -m pytest -m clients tests/server/clients tests/server/test_documents.py

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: $(VENV)/installed$(if $(PEER_PYTHON),,-peers)
	$(PY) -m packlight.bench.suite --models="$(BENCH_MODELS)" --peer_python="$(or $(PEER_PYTHON),$(PY))"
	$(PY) -m packlight.bench.breakdown --model="$(BENCH_MODELS)/tinyllama-1.1b-Q4_K_M.gguf"
	$(PY) -m packlight.bench.startup; bounds=$$?; $(PY) -m packlight.bench.render && exit $$bounds

# our server beside llama.cpp's, which PEER_SERVER names; without it ours alone
bench-serving: $(VENV)/installed-serve
	$(PY) -m packlight.bench.serving --models="$(BENCH_MODELS)" $(if $(PEER_SERVER),--peer_server="$(PEER_SERVER)"); aims=$$?; $(PY) -m packlight.bench.render && exit $$aims

# in an environment whose jax finds a GPU, which PYTHON names
bench-gpu:
	$(PYTHON) -m packlight.bench.suite --models="$(BENCH_MODELS)" --only=gpu-tinyllama-1.1b,gpu-llama-3-8b,gpu-tinyllama-1.1b-pp2048,gpu-llama-3-8b-pp2048
	$(PYTHON) -m packlight.bench.render

notebooks: $(VENV)/installed-dev
	$(PY) notebooks/execute.py

# in dist/: a wheel for any platform, and one for each that has its native kernels built; ONLY=aarch64 makes that one
wheels: $(WHEELS_VENV)/installed
	$(WHEELS_VENV)/bin/python -m tools.wheels $(if $(ONLY),--only="$(ONLY)")

# what they hold; and the kernels for ARM, by the same compiler, in an emulator where there is one
test-wheels: wheels
	$(WHEELS_VENV)/bin/python -m pytest tests/project/test_wheels.py tests/quant/kernels/test_native_builds.py -k "wheel or neon"

clean:
	rm -rf $(VENV) $(TARGETS_VENV) $(CLIENTS_VENV) $(WHEELS_VENV) build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-serve: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --editable ".[serve]"
	@touch $@

$(VENV)/installed-peers: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --editable ".[peers]"
	@touch $@

$(TARGETS_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(TARGETS_VENV)
	$(TARGETS_VENV)/bin/python -m pip install --quiet --editable ".[tpu,cuda]" pytest
	@touch $@

$(CLIENTS_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --editable ".[dev-serve]"
	@touch $@

$(WHEELS_VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(WHEELS_VENV)
	$(WHEELS_VENV)/bin/python -m pip install --quiet --editable . $(WHEELS_NEED) "hatchling>=1.27" "editables>=0.5" pytest
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --editable ".[dev]"
	@touch $@
