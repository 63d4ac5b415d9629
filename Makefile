# The environment in .venv is made once, and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: sweep board test check bench gpu soak clean

sweep: .venv/installed
	$(BIN)/qbench sweep $(ARGS)

# Train what is missing of a tracked board and write its tables: `make board BOARD=linreg`.
BOARD ?= quick
board: .venv/installed
	$(BIN)/qbench sweep results/$(BOARD) $(ARGS)
	$(BIN)/qbench show $(BOARD) --markdown > results/$(BOARD)/leaderboard.md
	$(BIN)/qbench show $(BOARD) --csv > results/$(BOARD)/leaderboard.csv
	$(BIN)/qbench show $(BOARD) --runs > results/$(BOARD)/runs.csv

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile --junitxml=.venv/tests.xml $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff check qbench methods tasks tests
	$(BIN)/ruff format --check qbench methods tasks tests
	$(BIN)/mypy

bench: .venv/installed-test
	$(BIN)/python -m tests.bench $(ARGS)

# Measure what only a GPU can show, and write gpu.json and gpu.md: `make gpu OUT=folder`. It takes
# ten minutes.
OUT ?= gpu-report
gpu: .venv/installed-test
	$(BIN)/python -m tests.bench.gpu --out $(OUT) $(ARGS)

# Run all tests at length: 500 drawn examples each, every method on every task, more kills.
soak: .venv/installed-test
	QBENCH_SOAK=1 $(BIN)/python -m pytest --timeout 3600 $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'qbench needs Python 3.11 or newer; name one: make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-test: pyproject.toml | .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
