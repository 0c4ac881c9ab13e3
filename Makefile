# `make demo` and `make test` need nothing but Python 3.11 or newer: each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
OUT ?= runs/digits
LABELS ?= runs/digits-labels
BENCH ?= --quick
# Every process that a test starts would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo label test test-all check bench sbom compatibility clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   active learning on handwritten digits: table, curves, HTML page"
	@echo "make label  a page on which you label scikit-learn's digits, to try it"
	@echo "make test   the tests, what takes long in its short form: some 4 min on two cores"
	@echo "make test-all   these, and the long forms too: 10 min"
	@echo "make check  lint, format, types, import rules, docstrings, names"
	@echo "make sbom   what is installed, with versions, as sbom.json (CycloneDX)"
	@echo "make compatibility   short tests with other versions of Python and torch, as far as at hand"
	@echo "make bench  speed of gradient norms and of selection, small (whole: make bench BENCH=)"

demo: $(VENV)/core
	@$(BIN)/upslope compare configs/digits.yaml --out $(OUT)

label: $(VENV)/label
	@$(BIN)/upslope label digits --out $(LABELS)

# Two workers with one thread each: torch's own threads would fight over the cores. A file's tests
# stay together, since they share what is slow to make.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# An empty expression, in place of the one in pyproject.toml that leaves out what is long.
test-all: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m ""

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/prose.py
	$(BIN)/python tools/import_graph.py
	$(BIN)/python -W error -c "import upslope, upslope.cli, upslope.gradnorm"

bench: $(VENV)/core
	$(BIN)/python benchmarks/gradnorm.py $(BENCH)
	$(BIN)/python benchmarks/selection.py $(BENCH)

# In an environment of its own, so that the tool itself is not among what is listed.
sbom: $(VENV)/core
	@$(PYTHON) -m venv $(VENV)/sbom-tool
	@$(VENV)/sbom-tool/bin/python -m pip --disable-pip-version-check --quiet install cyclonedx-bom
	@$(VENV)/sbom-tool/bin/cyclonedx-py environment --pyproject pyproject.toml -o sbom.json $(BIN)/python
	@echo "Wrote sbom.json."

compatibility:
	@$(PYTHON) benchmarks/compatibility.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Expected Python 3.11 or newer but $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/label: $(VENV)/core
	@$(PIP) install -c constraints.txt -e '.[label]'
	@touch $@

$(VENV)/dev: $(VENV)/core
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
