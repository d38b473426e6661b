# `make demo` and `make test` set up all they need. Options: PYTHON=python3.12, JOBS=8, KIND=cpu|cuda.
SHELL := /bin/bash
PYTHON ?= python3
JOBS ?= $(shell nproc)
# Which vLLM: the CUDA build where a GPU answers, the CPU build where there is none, or where
# CUDA_VISIBLE_DEVICES is empty. A driver that does not answer is an error (`broken`).
KIND ?= $(shell if [ "$${CUDA_VISIBLE_DEVICES-0}" = "" ] || ! command -v nvidia-smi >/dev/null; then echo cpu; \
  elif nvidia-smi -L >/dev/null 2>&1; then echo cuda; elif [ $$? = 6 ]; then echo cpu; else echo broken; fi)
DEMO_METHODS := zero_shot,zero_shot_adapted,image_prototypes,latteclip,recommended
INSTALLED := .venv/.installed-$(KIND)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
ifeq ($(KIND),cpu)
export CUDA_VISIBLE_DEVICES :=
endif

.PHONY: install demo test test-gpu fuzz mutants bench envs docs lint format demo-models clean

install: $(INSTALLED)

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	pip install --quiet --upgrade pip

.venv/.installed-cpu: pyproject.toml envs/cpu.txt | .venv/bin/pip
	@echo "No NVIDIA GPU here: installing the CPU builds of torch and vLLM (KIND=cuda for the others)."
	pip install --quiet --no-deps --requirement envs/cpu.txt
	pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@python -c 'import torchvision, vllm' || { echo 'torch or vLLM does not import. Where the package index has no CPU build of torch, name one that has: see docs/environments.md.'; exit 1; }
	@touch $@

.venv/.installed-cuda: pyproject.toml envs/cuda.txt | .venv/bin/pip
	@echo "Installing the CUDA builds of torch and vLLM (KIND=cpu for the others): 4.6 GB to download, 10 GB on the disk."
	pip install --no-deps --requirement envs/cuda.txt
	pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

.PHONY: .venv/.installed-broken
.venv/.installed-broken:
	@nvidia-smi; echo 'error: nvidia-smi fails; repair the driver (after a kernel update, reboot), export CUDA_VISIBLE_DEVICES= for the CPU, or give KIND=cuda on a login node.' >&2; exit 1

# With the learning rate that the search finds here, which would take a minute. One seed leaves out a
# fifth of the images, so that enough compare models.
demo: install
	@echo "Everything is installed. The run begins."
	snakemake -j$(JOBS) --config dataset=demo method=$(DEMO_METHODS) seeds=1 selection='{share: 0.2}' \
	  methods='{recommended_single: {finetune: {lr: 3.0e-4}}}'
	@cat results/summary.md

# Files of tests side by side: more than two cores keep busy, for some mostly wait.
TESTS_AT_ONCE ?= 3
test: install
	pytest --numprocesses=$(TESTS_AT_ONCE) --dist=loadfile --no-loadscope-reorder --max-worker-restart=0

# The tests that a GPU may answer otherwise, one after another. `make test` hides the GPU.
test-gpu: install
	pytest -m gpu

# Every reader of foreign bytes on random and damaged ones, for so many seconds each; the same
# numbers of rounds give the same cases.
FUZZ_SECONDS ?= 60
fuzz: install
	FUZZ_SECONDS=$(FUZZ_SECONDS) pytest -m fuzz

# Small faults, planted one at a time in copies: .mutants/survivors.diff has those that no test notices.
# cosmic-ray has an environment of its own, for it only starts the tests.
MUTANTS ?= 200
mutants: install .mutants/venv/.installed
	.mutants/venv/bin/python tools/mutants.py --sample $(MUTANTS)

.mutants/venv/.installed:
	$(PYTHON) -m venv .mutants/venv
	.mutants/venv/bin/pip install --quiet cosmic-ray==8.7.0
	@touch $@

# Timings, side by side where they are compared. docs/benchmarks.md has figures.
bench: install
	python benchmarks/train_step.py
	python benchmarks/train_step.py --memory
	python benchmarks/captions.py
	python benchmarks/captions.py --memory 2000 20000
	python benchmarks/captions.py --pictures
	python benchmarks/predict.py
	python benchmarks/scale.py 100000

# One version of each requirement: envs/cpu.txt and envs/cuda.txt.
envs: | .venv/bin/pip
	python envs/pin.py cpu
	python envs/pin.py cuda

# The tables of docs/reference.md and docs/configuration.md, and docs/schema.json.
docs: install
	python tools/generate_docs.py

lint: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy
	snakemake --lint

format: install
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

# Train the stand-in models of the demo again (about half an hour on two cores).
demo-models: install
	python tools/demo_models/train_clip.py
	python tools/demo_models/train_llava.py

clean:
	rm -rf results .snakemake .mutants
