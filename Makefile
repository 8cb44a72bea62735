# Two commands matter: `make demo` and `make test`. Both start from an empty machine.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
# Real data is used when it lies beside the checkout; nothing is downloaded.
export GRACILE_DATA ?= $(abspath $(wildcard ../shared/data))
export OMP_NUM_THREADS ?= $(if $(filter demo,$(MAKECMDGOALS)),2,1)

.PHONY: help demo test format bench results coverage sanitize clean
help:
	@echo "make demo     a network made smaller and faster, with proof: runs/demo/report.html"
	@echo "make test     the whole test suite"
	@echo "make format   style mended"
	@echo "make bench    benchmarks; figures go to results/"
	@echo "make coverage every public architecture reduced by half (an hour or two); docs/coverage.md"
	@echo "make sanitize the native kernels' tests under sanitizers"
	@echo "make results  run the recipes of all works (hours); figures go to results/"

# torch first and alone, so that no later package chooses another build of it.
$(VENV)/.base: pyproject.toml CMakeLists.txt $(wildcard src/gracile/native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/pip install --quiet --no-deps '$(TORCHVISION)'
	$(BIN)/pip install --quiet --no-deps openvino  # without what counts its users
	$(BIN)/pip install --quiet -e '.[dev,tensorboard,lightning,hf,onnx,zoo]'
	touch $@

# From the start each time: a demo shows the whole journey.
demo: $(VENV)/.base
	rm -rf runs/demo
	$(BIN)/gracile reduce --output runs/demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/regularizer_overhead.py
	$(BIN)/python benchmarks/graph_removal.py
	$(BIN)/python benchmarks/sparse_layers.py
	$(BIN)/python benchmarks/sparse_networks.py

WORKS := C3 C5 C6 C9 C11 C12 C13 C16 C18 C22 C23 T1 T2
results: $(VENV)/.base
	set -e; for scale in tiny cpu; do for work in $(WORKS); do \
	  $(BIN)/gracile papers run $$work --scale $$scale --seeds 0,1,2; done; done
	$(BIN)/gracile papers table --write README.md
	$(BIN)/gracile papers table --write docs/results.md

# The kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer; the extension is built beside the other.
sanitize: $(VENV)/.test
	$(BIN)/pip install --quiet nanobind cmake ninja
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DGRACILE_SANITIZE=ON \
	  -Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/sanitize
	LD_PRELOAD=$$($${CXX:-g++} -print-file-name=libasan.so):$$($${CXX:-g++} -print-file-name=libubsan.so) \
	  ASAN_OPTIONS=detect_leaks=0 GRACILE_NATIVE=$(abspath build/sanitize) \
	  $(BIN)/python -m pytest -p no:xdist tests/runtime/kernels

# Goes on where it stopped; results/coverage/trials.jsonl removed, it starts anew.
coverage: $(VENV)/.test
	PYTHONPATH=benchmarks $(BIN)/python -m reducible.study --page docs/coverage.md

clean:
	rm -rf $(VENV) build runs
