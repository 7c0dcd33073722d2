# Needs make and Python 3.11 or later; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow parity tpu bench lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

# Each run starts anew: the demo is asked for to see it happen, and a finished run would only be read back.
# Everything under runs/demo is generated from a seed; your own runs have other folders.
demo: .venv/.installed  ## generate a cohort, train every row of the tables on it, write runs/demo/report.md
	rm -rf runs/demo
	$(BIN)/jaxlora demo --config=configs/demo.py --workdir=runs/demo

# Two workers: compilations would only wait for each other with more. A file stays on one worker, with its fixtures.
test: .venv/.installed  ## run the tests, except the slow ones and those that need PyTorch or libtpu
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not slow and not parity and not tpu"

# They compile as a user's programs do; the others leave XLA's optimizations out.
test-slow: .venv/.installed  ## run the slow tests
	XLA_FLAGS=--xla_force_host_platform_device_count=1 $(BIN)/pytest -q -m slow

parity: .venv/.installed  ## compare with transformers and PEFT; installs PyTorch into .venv
	$(BIN)/pip install --quiet --editable '.[parity]'
	$(BIN)/pytest -q -n 2 --dist loadfile -m parity

tpu: .venv/.installed  ## compile for TPUs that are not there; installs libtpu into .venv
	$(BIN)/pip install --quiet --editable '.[tpu]'
	$(BIN)/pytest -q -m tpu

bench: .venv/.installed  ## measure the engine beside transformers and PEFT: runs/bench/report.md; installs PyTorch, libtpu
	$(BIN)/pip install --quiet --editable '.[parity,tpu]'
	$(BIN)/python benchmarks/bench.py --out runs/bench

lint: .venv/.installed  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.installed  ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and the caches; runs/ and data/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv; the first time takes a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
