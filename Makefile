PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FAST := .venv-fast
FAST_STAMP := $(FAST)/.installed

.PHONY: demo test test-fast test-slow lint docs clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[cpu,test]"
	touch $(STAMP)

$(FAST_STAMP): pyproject.toml
	$(PYTHON) -m venv $(FAST)
	$(FAST)/bin/python -m pip install --quiet --upgrade pip
	$(FAST)/bin/python -m pip install --quiet -e ".[cpu,fast]"
	touch $(FAST_STAMP)

demo: $(STAMP)
	$(BIN)/resfit demo

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# the base install and pytest alone, and the modules of tests/fast.csv; what is left out says why
test-fast: $(FAST_STAMP)
	$(FAST)/bin/python -m pytest -q --fast -n 2 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src

# the documentation site, in build/site; broken links and unknown names are errors
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf $(VENV) $(FAST) demo build dist
