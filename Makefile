# Everything starts here. On a machine with Python >= 3.10 and Rust, each target sets up what it needs:
# a virtual environment in .venv, its packages (torch too), and the built extension.
#
#   make demo     train a small transformer under DualPipe and beside it serially
#   make test     all tests
#   make lint     formatting, lints, types, and the stub file against the built module
#   make test-long   what takes too long for every run: families and mutations exhaustively, 10 000 random
#                    simulations, 200 seeds on the software device, the wheel
#   make browser-test  the canvas in Chromium, and notebook 2 in JupyterLab; make test skips these without a browser
#   make gpu-test    dp.Executor on the GPUs of this machine; make test skips these where there is none
#   make fuzz     ten minutes each of broken texts, tables and schedules
#   make bench    the tables of docs/benchmarks.md
#   make notebooks   runs the notebooks and saves them with what they show

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUST   := $(shell find rust -name '*.rs') Cargo.toml Cargo.lock pyproject.toml

.PHONY: demo test test-long test-rust test-python browser-test gpu-test fuzz lint bench notebooks clean

demo: $(VENV)/built
	$(BIN)/python -m dualpipe_rs demo

test: test-rust test-python

test-rust:
	cargo test --locked --features cuda
	cargo test --locked -p fakecuda

test-python: $(VENV)/built
	$(BIN)/python -m pytest

test-long: $(VENV)/built
	LONG=1 cargo test --locked -p fakecuda --test executor
	LONG=1 $(BIN)/python -m pytest --timeout 3000 tests/test_families.py tests/test_p2p.py tests/test_mutations.py tests/test_random_agreement.py tests/test_faults.py tests/test_fault_cases.py tests/test_exits.py tests/test_odd_tensors.py tests/test_wheel.py

# Chromium and its driver are Debian's: apt-get install chromium chromium-driver
browser-test: $(VENV)/built
	$(BIN)/python -m pip install --quiet "selenium>=4.20" "jupyterlab>=4"
	$(BIN)/python -m pytest tests/test_browser.py tests/test_browser_notebook.py

gpu-test: $(VENV)/built
	$(BIN)/python -m pytest tests/gpu

fuzz: $(VENV)/built
	$(BIN)/python fuzz/fuzz.py

lint: $(VENV)/built
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest dualpipe_rs._core

bench: $(VENV)/built
	$(BIN)/python bench/import_time.py
	$(BIN)/python bench/schedules.py
	$(BIN)/python bench/simulate.py
	$(BIN)/python bench/prediction.py
	$(BIN)/python bench/pictures.py
	cargo bench --locked --bench interpreter
	$(BIN)/python bench/executor.py
	$(BIN)/python bench/step.py
	$(BIN)/python bench/processes.py

notebooks: $(VENV)/built
	$(BIN)/python notebooks/save.py

# The packages, from pyproject.toml's extras.
$(VENV)/packages: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "maturin>=1.10,<2"
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --extras torch,dev
	touch $@

$(VENV)/built: $(VENV)/packages $(RUST)
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --skip-install
	touch $@

clean:
	rm -rf $(VENV) target
