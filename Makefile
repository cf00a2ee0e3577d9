# SPDX-License-Identifier: Apache-2.0
# Short names for the commands of CONTRIBUTING.md. PY is the interpreter of scripts/test.sh's environment.
PY ?= .venv/bin/python

.PHONY: help check test test-unit native-check bench docs-config clean

help:
	@echo "check        style: ruff, formatting, spelling (seconds)"
	@echo "test         everything CI runs: environment, style, all tests (bash scripts/test.sh)"
	@echo "test-unit    the unit and meta tests only"
	@echo "native-check native kernels: randomized calls under sanitizers, formatting (a minute or two)"
	@echo "bench        training, decoding and preprocessing beside PyTorch, JSON lines"
	@echo "docs-config  show the resolved tiny configuration, every key with its value"
	@echo "clean        caches and build products; never environments, data, checkpoints or other output"

check:
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib .

test:
	bash scripts/test.sh

test-unit:
	$(PY) -m pytest tests/unit tests/meta

native-check:
	$(PY) tools/native_check.py

bench:
	$(PY) benchmarks/train.py
	$(PY) benchmarks/decode.py
	$(PY) benchmarks/preprocess.py

docs-config:
	$(PY) -m mindformers show configs/llama2/run_llama2_tiny.yaml

clean:
	rm -rf build dist mindformers.egg-info .pytest_cache .ruff_cache .hypothesis
	find mindformers tests scripts tools benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
