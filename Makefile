# `make demo` and `make test` set up what they need in .venv when it is missing; nothing is installed again when it is there.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
FAIRSEQ := .venv-fairseq
RUN    ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo demo-translation test test-slow test-paper test-launch test-hub check check-style mutants bench bench-images bench-gpu seeds cards clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf_lskd needs Python 3.11 or newer; PYTHON=… names one")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## two teachers and eight students on glyphs, with the report that answers the question
	$(BIN)/hf-lskd study recipes/quickstart/glyphs.yaml --output-dir $(RUN)

demo-translation: $(READY) ## the same question for translation, on CLDR phrases from English to German
	$(BIN)/hf-lskd study recipes/quickstart/cldr_en_de.yaml --output-dir runs/demo-translation

test: $(READY) ## the tests, without the slow ones
	$(BIN)/python -m pytest -q -n auto

$(FAIRSEQ)/.ready: # the oracle of slow tests, in an environment of its own: its dependencies are not ours
	$(PYTHON) -m venv $(FAIRSEQ)
	$(FAIRSEQ)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 fairseq-fixed==0.12.3.1 subword-nmt==0.3.8
	touch $@

test-slow: $(READY) $(FAIRSEQ)/.ready ## every test, those beside fairseq's own training and checkpoints among them
	HF_LSKD_FAIRSEQ_PYTHON=$(FAIRSEQ)/bin/python $(BIN)/python -m pytest -q -n auto -m 'slow or not slow'

test-paper: $(READY) ## each recipe of the paper, two steps at full size on small data in the real format
	$(BIN)/python -m pytest -q -n auto -m 'slow or not slow' tests/test_paper_recipes.py

test-launch: $(READY) ## process groups, and a real Slurm of two nodes where it is installed (skipped, with the reason, where it is not)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow tests/test_launch_equality.py tests/test_launch.py tests/test_slurm.py tests/test_clock.py tests/test_claims.py

test-hub: $(READY) ## publishing to a server on loopback, exports and conversions: the slow tests that need no fairseq
	$(BIN)/python -m pytest -q -n 2 -m slow tests/test_publish.py tests/test_export.py tests/test_convert_images.py tests/test_pushing.py

check: check-style test ## what must be green before a commit: ruff, mypy, tests

check-style: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: $(READY) ## put the cause of each trap back, in a scratch copy, and see its test fail
	$(BIN)/python -m tests.mutants

bench: $(READY) ## every cost that is promised beside its peer, as ratios: bench/results.json, docs/bench.md
	HF_LSKD_FAIRSEQ_PYTHON=$(wildcard $(FAIRSEQ)/bin/python) $(BIN)/python -m bench

bench-images: $(READY) ## pictures a second of the training pipeline beside what decoding alone allows, as ratios
	$(BIN)/python -m bench.images

bench-gpu: $(READY) ## on a GPU, in eight minutes: losses, a step, a cell, waits and gaps, as JSON lines and a table
	$(BIN)/python -m bench.gpu

seeds: $(READY) ## the demo with three seeds and the equalised control
	$(BIN)/hf-lskd study recipes/quickstart/glyphs_seeds.yaml --output-dir runs/glyphs_seeds

cards: $(READY) ## the model cards again, from the records beside them
	$(BIN)/python -m hf_lskd.card model_cards

clean: ## remove what was built here, the environment included
	rm -rf $(VENV) $(FAIRSEQ) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
