# make demo: environment, then the main job.  make test: environment, then all tests.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python main.py --config=configs/dpt.py

# Lint, types, and the tests that start no process: two minutes.
check: .venv/installed-dev lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not process"

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -q -n 2

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Minutes of what `make test` does for seconds: kills, damaged files, settings and folders, and a long run.
soak: .venv/installed-dev
	$(BIN)/python -m pytest -q -m slow

# The tables and the figure of docs/measurements.md: five methods at 1, 2, 4 and 8 shots from three seeds, on the
# drawings of the style that they learn from and of another, and from half of the classes to the other half.
table: .venv/installed-dev
	$(BIN)/dpt-jax sweep --protocol=domain-generalization --datasets=emoji --targets=emoji_noto --shots=1,2,4,8 --runs=runs/table
	$(BIN)/dpt-jax sweep --protocol=base-to-new --shots=8 --runs=runs/table
	$(BIN)/dpt-jax report runs/table
	$(BIN)/python benchmarks/emoji_figure.py runs/table docs/emoji.png

docs/settings.md: dpt_jax/settings/keys.py .venv/installed
	$(BIN)/dpt-jax settings > $@

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-dev: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ .venv/installed

.PHONY: demo check test lint soak table
