# Every target sets up .venv first if it is missing or out of date; a torch that is already in it is kept.
PY := .venv/bin/python
PYTHON ?= python3

.PHONY: run test test-all lint bench clean
.SILENT:

run: .venv/.core
	$(PY) -m upslope run tiny $(ARGS) || { code=$$?; [ $$code -eq 75 ] || exit $$code; }

test: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup

test-all: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup -m "not slow"
	$(PY) -m pytest -m slow

lint: .venv/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy upslope
	.venv/bin/lint-imports

bench: .venv/.dev
	for f in benchmarks/*.py; do $(PY) $$f || exit 1; done

.venv/.core: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) sh scripts/setup.sh .

.venv/.dev: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) sh scripts/setup.sh .[dev]
	touch .venv/.core .venv/.dev

clean:
	rm -rf .venv build dist *.egg-info
