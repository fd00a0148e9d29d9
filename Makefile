# make demo: environment, then the main job.  make test: environment, then the tests.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/python main.py --config=configs/dpt.py

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

# Zero-shot, CoOp, VPT, VLP and DPT at 1, 2, 4 and 8 shots from three seeds: table and figure of the README.
table: .venv/installed-dev
	$(BIN)/python benchmarks/emoji_table.py --figure=docs/emoji.png

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@ .venv/installed

.PHONY: demo test table
