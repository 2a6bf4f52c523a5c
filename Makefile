# make demo · make test · make long · make certify · make docs · make site · make notebooks · make lint · make bench.  Each creates .venv and installs what it needs when that is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# `make test EXTRAS=test,parity` adds the live comparison with torch.
EXTRAS ?= test
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: help demo quick test long certify docs site notebooks lint format bench clean
help:
	@sed -n 1p Makefile

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "opd_jax needs Python 3.11 or newer; name one with make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "creating $(VENV) and installing (a minute or two, once)"; $(PYTHON) -m venv $(VENV); }
	@$(PIP) --editable .
	@touch $@

$(STAMP): $(VENV)/.installed
	@echo "installing the extras: $(EXTRAS)"
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.installed
	@$(PIP) --editable '.[plot]'
	@JAX_PLATFORMS=cpu $(BIN)/opd demo --workdir runs/demo

# `make test METHOD=aopd` runs what concerns one method: its formula, the laws, its certificate, its gin file.
ifdef METHOD
TESTS := tests/methods/$(METHOD)_test.py tests/contract_test.py tests/certify_test.py tests/experiments_test.py -k $(METHOD) --variants
else
# A file stays with one worker: its programs and its runs are made once.
NUMPROCESSES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
endif
test: $(STAMP)
	@$(BIN)/python -m pytest $(NUMPROCESSES) -m 'not long' $(TESTS) $(ARGS)

# What starts processes and kills them, every command of the pages, and the notebooks.
long: $(STAMP)
	@$(BIN)/python -m pytest $(NUMPROCESSES) -m long $(ARGS)

# A minute: floors and sizes, the divergences, the laws of what `weigh` sees, three formulas, one method through everything.
quick: $(STAMP)
	@$(BIN)/python -m pytest --numprocesses 2 tests/floors_test.py tests/sizes_test.py tests/losses/divergences_test.py \
	  tests/method_test.py tests/methods/opd_test.py tests/methods/aopd_test.py tests/methods/gkd_test.py tests/quick_test.py $(ARGS)

# Every certificate, also those of variants, estimators, terms and known mistakes.
certify: $(VENV)/.installed
	@JAX_PLATFORMS=cpu $(BIN)/opd certify --all

docs: $(STAMP)
	@JAX_PLATFORMS=cpu $(BIN)/python docs/generate.py

# The documentation as a site, build/site/index.html. A dead link ends the build.
site: $(STAMP)
	@$(BIN)/python docs/build_site.py

# Executes every notebook and writes its outputs in place.
notebooks: $(STAMP)
	@JAX_PLATFORMS=cpu PYTHONPATH=$(CURDIR) $(BIN)/python notebooks/execute.py $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright --level error

format: $(STAMP)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .jax_cache runs/demo
