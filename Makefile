# One command each, from a fresh clone: everything needed is installed into $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
# The last two import frameworks, which takes seconds, and hold no quick test.
NOT_QUICK := tests/studies tests/integrations/test_lightning.py tests/integrations/test_huggingface.py
QUICK := not (lengthy or processes or slurm or browser or frameworks or gpu or slow or speed)

.PHONY: help demo quick test test-slow test-gpu test-speed bench gpu docs gallery dist check format clean

help:
	@echo "make demo        the main job on this machine: a sweep, figures, findings (9 to 17 minutes)"
	@echo "make quick       three quarters of the tests: none that starts a process or takes long (1 to 3 minutes)"
	@echo "make test        the tests, on two cores (7 to 26 minutes); WORKERS=8 on more"
	@echo "make test-slow   those left out of it for their time, kills and full disks (about 20 minutes)"
	@echo "make test-gpu    the tests that need a CUDA device"
	@echo "make test-speed  the benchmarks in short, beside what is on record (a few minutes)"
	@echo "make bench       the benchmarks of speed, into benchmarks/README.md (15 to 18 minutes)"
	@echo "make gpu         every measurement that needs a GPU, in calls of 9 minutes that go on; GPU_ARGS"
	@echo "make docs        the documentation site, into build/docs; warnings are errors"
	@echo "make gallery     the generated pages again: settings, gallery and its pictures"
	@echo "make dist        the sdist and the wheel, into dist, and a check of both"
	@echo "make check       format, lint and types, as the pre-commit hooks do"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "stabkit needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	@touch $@

demo: $(READY)
	$(BIN)/stabkit sweep sweeps/lr_grid.yaml
	$(BIN)/stabkit analyze runs/lr_grid --plot knn
	$(BIN)/stabkit analyze runs/lr_grid --plot event-zoom
	$(BIN)/stabkit analyze runs/lr_grid --plot grad-norms
	$(BIN)/python analysis/lr_grid.py runs/lr_grid
	$(BIN)/stabkit analyze runs/lr_grid
	$(BIN)/stabkit report runs/lr_grid
	@echo
	@echo "Pictures: runs/lr_grid/figures/knn.png, event-zoom.png, levels.png, grad-norms.png (PDF and CSV beside)."
	@echo "All in one page: runs/lr_grid/report.html"

quick: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "$(QUICK)" \
		$(addprefix --ignore ,$(NOT_QUICK)) --durations 5 --durations-min 0.5

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

test-speed: $(BENCH_READY)
	$(BIN)/python -m pytest -m speed tests/test_speed.py

bench: $(BENCH_READY)
	$(BIN)/python -m benchmarks.bench

gpu: $(BENCH_READY)
	$(BIN)/python -m benchmarks.gpu.run $(GPU_ARGS)

docs: $(READY)
	$(BIN)/python -m mkdocs build --strict

gallery: $(READY)
	$(BIN)/python docs/tools/settings.py
	$(BIN)/python docs/tools/gallery.py

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
