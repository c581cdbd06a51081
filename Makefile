# `make demo` and `make test` do all the set-up themselves: they make a virtual environment and
# install into it. `make test PYTHON=python3.13` uses another interpreter, in an environment of
# its own.

PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where byte code is not written, every start of Python compiles all of torch anew.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH

# What `make gpu` runs with: the environment where there is one. GPU_PATH adds folders of packages.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
OUT ?= outputs/gpu
DATA_ROOT ?= ../shared/data
MINUTES ?= 25

.PHONY: help demo test check format docs wheel gpu bench-peers clean

help:
	@echo "make demo         fit a VAE to digits and draw what it learnt, into outputs/"
	@echo "make test         run the tests"
	@echo "make check        run the linter and the type checker"
	@echo "make format       format the code"
	@echo "make docs         build the site and its gallery into docs/_build/html (QUICK=1: runs no example)"
	@echo "make wheel        build what is published, install it beside nothing else, run the README's program there"
	@echo "make gpu          measure on a GPU what is measured there, 25 minutes, into outputs/gpu"
	@echo "make bench-peers  measure steps and whole runs beside NumPyro, in an environment of its own"
	@echo "make clean        remove the environments and the outputs"

demo: $(READY)
	$(BIN)/python examples/vae.py

# As many workers as cores: a thread for each, or they wait for one another.
test: export OMP_NUM_THREADS ?= 1
test: $(READY)
	$(BIN)/python -m pytest -q -n auto $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Examples are run side by side, with a thread each. They compile C++, as users' fits do.
docs: export OMP_NUM_THREADS ?= 1
docs: $(VENV)/.ready-docs
	@command -v $${CXX:-c++} >/dev/null || { echo "make docs: a C++ compiler is needed, and there is no $${CXX:-c++}: try apt-get install g++."; exit 1; }
	@rm -rf docs/api/generated docs/api/examples $(if $(QUICK),docs/gallery) # of names that may be gone
	$(BIN)/python -m sphinx -W --keep-going -q -j auto $(if $(QUICK),-t quick) docs docs/_build/html
	@echo "The site: docs/_build/html/index.html. A browser reads it in: make test ARGS=tests/docs"
	@command -v chromium chromium-browser google-chrome >/dev/null || echo "... which needs chromium: apt-get install chromium"

wheel: $(READY)
	$(BIN)/python -m tests.support.wheel $(ARGS)

gpu:
	PYTHONPATH='$(GPU_PATH)' $(GPU_PYTHON) -m benchmarks.gpu --out '$(OUT)' \
		--data-root '$(DATA_ROOT)' --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY))

bench-peers: .venv-peers/.ready
	.venv-peers/bin/python -m benchmarks.speed.peers --part steps $(ARGS)
	.venv-peers/bin/python -m benchmarks.speed.peers --part total $(ARGS)

clean:
	rm -rf .venv .venv-* outputs docs/_build docs/gallery docs/api/generated docs/api/examples

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python >= 3.11 is needed; $(PYTHON) is older. Try make PYTHON=python3.12."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $(READY)

$(VENV)/.ready-docs: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev,docs]'
	touch $@

.venv-peers/.ready: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-peers
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-peers/bin/python --editable '.[peers]' pytest
	touch $@
