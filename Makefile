# Everything happens in .venv; the first target that needs it makes it.
#   make demo PYTHON=python3.12     another interpreter
#   make test TESTS=tests/rl        some of the tests
#   make demo ARGS="--seed 1"       options of the command

PYTHON ?= python3
JOBS   ?= 2
TESTS  ?=
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

# One torch thread a process: two of them on two cores wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Tests start Python many times: what was compiled is kept, also where the environment says not to.
COMPILED := PYTHONDONTWRITEBYTECODE=

.DEFAULT_GOAL := help
.PHONY: help demo test proofs check bench pretrain install clean

help:  ## these lines
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo: $(STAMP)  ## a first fine-tuning run, start to finish, on this machine
	@$(BIN)/scoretune demo $(ARGS)

# Each part says OK or FAILED by its name, the last line says it of all, and no part keeps another
# from running. What passes is quiet.
define parts
@failed=; passed=; \
part() { name=$$1; repair=$$2; shift 2; \
  if "$$@"; then echo "$$name: OK"; passed="$$passed $$name"; \
  else echo "$$name: FAILED. Repair: $$repair"; failed="$$failed $$name"; fi; }; \
quietly() { said=$$("$$@" 2>&1) || { echo "$$said"; return 1; }; }; \
finish() { echo "passed:$${passed:- nothing}"; test -z "$$failed" || { echo "FAILED:$$failed"; exit 1; }; }; \
part format "$(BIN)/ruff format ." $(BIN)/ruff format --check --quiet --output-format concise .; \
part lint "some by $(BIN)/ruff check --fix ." $(BIN)/ruff check --quiet --output-format concise .; \
part types "see the lines above; alone: $(BIN)/mypy" $(BIN)/mypy --no-error-summary; \
part imports "a room imports lower floors only, see docs/architecture.md; alone: $(BIN)/lint-imports" \
  quietly $(BIN)/lint-imports --no-cache --no-logo
endef

test: $(STAMP)  ## check, and the tests but for the slow ones
	$(parts); \
	echo "Testing with $(JOBS) processes …"; \
	part tests "see the lines above; again: $(BIN)/python -m pytest --last-failed" \
	  env $(ONE_THREAD) $(COMPILED) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow" $(TESTS) $(ARGS); \
	finish

proofs: $(STAMP)  ## the slow tests: learning to known values, every recipe and setting, many kills
	@env $(ONE_THREAD) $(COMPILED) $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m slow $(TESTS) $(ARGS)

check: $(STAMP)  ## format, lint, types and imports
	$(parts); finish

bench: $(STAMP)  ## speed of the main paths, one thread
	@$(ONE_THREAD) $(BIN)/python benchmarks/bench.py $(ARGS)

pretrain: $(STAMP)  ## train the shipped miniature again from nothing (hours)
	@$(BIN)/scoretune pretrain scenes $(or $(ARGS),runs/pretrain)

install: $(STAMP)  ## only the environment

clean:  ## remove the environment, caches and builds; runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and without its dependencies: where there is no NVIDIA driver, from the index of
# CPU builds, since the default index has CUDA builds for Linux (about 3 GB more). If that index
# can't be reached the default one serves. The second step keeps the torch that it finds.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "scoretune needs Python 3.11 or newer; there is no '$(PYTHON)'. Name one: make demo PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "scoretune needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another: make demo PYTHON=python3.12" % v[:2])'
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "No virtual environment could be made (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "Installing pinned dependencies (once, about a minute) …"
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  $(PIP) --retries 2 --timeout 15 --no-deps --index-url $(CPU_INDEX) "$(TORCH)" 2>/dev/null \
	  || { echo "  the index of CPU builds gave no $(TORCH); taking it from the default index"; \
	       $(PIP) --no-deps "$(TORCH)"; }; \
	else $(PIP) --no-deps "$(TORCH)"; fi
	@$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@
