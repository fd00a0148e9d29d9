# make demo: environment, then the main job.  make test: environment, then the tests.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python main.py --config=configs/dpt.py

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2

# Minutes of what `make test` does for seconds: kills, damaged files, settings and folders, and a long run.
soak: .venv/installed-dev
	$(BIN)/python -m pytest -q -m slow

# The tables and the figure of the README: five methods at 1, 2, 4 and 8 shots from three seeds, on the drawings of
# the style that they learn from and of another, and from half of the classes to the other half.
table: .venv/installed-dev
	$(BIN)/python -m dpt_jax.sweep --protocol=domain-generalization --datasets=emoji --targets=emoji_noto --shots=1,2,4,8 --runs=runs/table
	$(BIN)/python -m dpt_jax.sweep --protocol=base-to-new --shots=8 --runs=runs/table
	$(BIN)/python -m dpt_jax.report runs/table
	$(BIN)/python benchmarks/emoji_figure.py runs/table docs/emoji.png

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@ .venv/installed

.PHONY: demo test soak table
