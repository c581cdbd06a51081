# `make demo` and `make test` do all the set-up themselves: they make a virtual environment and
# install into it. `make test PYTHON=python3.13` uses another interpreter, in an environment of
# its own.

PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where byte code is not written, every start of Python compiles all of torch anew.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH

.PHONY: help demo test check format clean

help:
	@echo "make demo    fit a VAE to digits and draw what it learnt, into outputs/"
	@echo "make test    run the tests"
	@echo "make check   run the linter and the type checker"
	@echo "make format  format the code"
	@echo "make clean   remove the environments and the outputs"

demo: $(READY)
	$(BIN)/python examples/vae.py

test: $(READY)
	$(BIN)/python -m pytest -q $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* outputs

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python >= 3.11 is needed; $(PYTHON) is older. Try make PYTHON=python3.12."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $(READY)
