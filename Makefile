# make demo   the main job on embedded data, ending with a report
# make test   lint, types, documentation and tests
# make dist   sdist and wheel, their metadata checked as an index would, and the wheel tried in an empty environment
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: demo test lint types pytest test-slow faults test-gpu test-browser conformance bench docs dist clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("polargrad needs Python 3.11 or newer; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/polargrad compare adamw muon+adamw muon+normalized-tables

test: lint types docs pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/basedpyright

# Two workers with one thread each: small matrices do not gain from more threads.
pytest: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

# Every fault of docs/what-happens-when.md, and how it ended; nothing else should be running.
faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:xdist -m "" tests/faults

conformance: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n $(WORKERS) tests/linalg/test_conformance.py tests/linalg/test_certificate.py

test-gpu: $(READY)
	$(BIN)/python -m pytest -q -m gpu

# Report pages and the docs in headless Chromium; SCREENSHOTS=folder keeps the pictures.
test-browser: $(READY)
	$(BIN)/python -m pytest -q -m browser

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)
	$(BIN)/python benchmarks/polar.py

# An environment that holds the wheel and what it requires, and nothing of these sources.
dist:
	rm -rf build dist
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/tools/bin/python -m build --outdir dist
	build/tools/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	build/empty/bin/python -I release/check_wheel.py
	build/empty/bin/python -I benchmarks/import_time.py --limit 0.3
	ls -l dist

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
