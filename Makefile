# `make demo` shows everything AURA does on a laptop; `make test` runs every check. `make help` lists the rest.

PYTHON ?= python3
# A GPU user says, for example: make setup TORCH="torch==2.13.0 --index-url <the CUDA wheels you need>"
TORCH  ?= torch==2.13.0

VENV   := .venv
PY     := $(VENV)/bin/python
MINI   := data/mini
QUICK  := data/mini_quick
SPLITS := train val test

# One rank uses all cores; waiting threads sleep instead of spinning.
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev data train eval pictures chat demo demo-quick test lint clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## Make .venv and install AURA into it

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AURA needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; say: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

setup-dev: $(VENV)/.installed-dev ## The same, with the tools of the tests

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

data: setup ## The mini benchmark: scenes with exact amodal truth, and questions about them
	$(PY) scripts/make_mini.py --out $(MINI)
	for split in $(SPLITS); do $(PY) scripts/generate_questions.py --annotations $(MINI)/annotations/mini_$${split}_cocoa_cls.json \
	    --images $(MINI)/images/$$split --out $(MINI)/mini_$$split.json || exit 1; done

train: data ## Train AURA on the mini benchmark (15 minutes on 2 cores)
	deepspeed --num_accelerators 1 train_ds.py --config configs/mini.yaml

eval: ## Print the gIoU/cIoU tables of the trained model
	$(PY) eval.py --checkpoint runs/mini --data $(MINI)/mini_test.json --images $(MINI)/images/test \
	    --protocol teacher_forced --protocol generated_matched --out runs/mini/eval

pictures: ## A contact sheet of answers beside the truth

chat: ## Ask the trained model one question
	$(PY) chat.py --checkpoint runs/mini --image $(MINI)/images/test/mini_test_000000.jpg --ask "What could I eat here?" --out runs/mini/chat

demo: train eval pictures chat ## All of it: environment, data, training, tables, pictures, one answer

test: setup-dev ## Run every check
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest

lint: setup-dev ## Format, and show what ruff and mypy say
	$(PY) -m ruff format . && $(PY) -m ruff check --fix . && $(PY) -m mypy

clean: ## Remove what the demo made (not the environment)
	rm -rf $(MINI) $(QUICK) runs/mini runs/demo_quick
