# Each target sets up what it needs. Variables:
#   PYTHON=/path/to/python3.10   create .venv with this interpreter
#   ENV=current                  use the active Python (or PYTHON) as it is: no .venv, no downloads
#   PYTEST_ARGS="-k corner"      more arguments for pytest
#   BENCH_ARGS="--only pooling"  more arguments for the benchmark
#   GPU_ARGS="--only kernels"    more arguments for gpu-check; --dry-run where there is no GPU
#   ABLATION_ARGS="--seeds 5"    more arguments for ablation
#   LOCK_ARGS=--upgrade          let `make lock` choose newer versions

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PROJECT := projects/CentripetalNet
DEMO_MODEL := output/demo/training/model_final.pth

ifeq ($(ENV),current)
PYTHON_OF_ENV := $(or $(PYTHON),python)
RUFF := $(PYTHON_OF_ENV) -m ruff
else
# In the shell's environment ENV names a startup file of some shells; it is ignored.
ifeq ($(origin ENV),command line)
$(error ENV=$(ENV) is unknown; the only choice is ENV=current)
endif
PYTHON_OF_ENV := .venv/bin/python
RUFF := .tools/bin/ruff
# Compilation at run time needs ninja on the PATH.
IN_ENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
endif

# dev/ has no configuration of its own.
RUFF_CONFIG := --config $(PROJECT)/pyproject.toml
LINTED := dev $(PROJECT)
# The timeout is for tests that hang.
PYTEST := $(PYTHON_OF_ENV) -m pytest $(PROJECT)/tests --timeout 900

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@sed -n '/^#   /s/^# //p' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## train a small detector on images from installed packages, draw its detections and report its errors, in output/demo
	@dev/setup.sh demo
	$(IN_ENV) $(PYTHON_OF_ENV) $(PROJECT)/tools/run_demo.py --output output/demo

.PHONY: test
test: ## run all tests except the slow ones
	@dev/setup.sh test
	$(IN_ENV) $(PYTEST) -m "not slow" $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: ## run the slow tests
	@dev/setup.sh test
	$(IN_ENV) $(PYTEST) -m slow $(PYTEST_ARGS)

.PHONY: sanitize
sanitize: ## run the operators' tests with AddressSanitizer and UndefinedBehaviorSanitizer
	@dev/setup.sh test
	$(IN_ENV) dev/sanitize.sh $(PYTHON_OF_ENV) $(PYTEST_ARGS)

.PHONY: bench
bench: $(DEMO_MODEL) ## measure time and memory of the parts against their goals, also in output/benchmark.json
	@dev/setup.sh demo
	$(IN_ENV) $(PYTHON_OF_ENV) $(PROJECT)/tools/benchmark.py --output output/benchmark.json --weights $(DEMO_MODEL) $(BENCH_ARGS)

# The benchmark measures the AP in lower precision, which needs a trained model.
$(DEMO_MODEL):
	@$(MAKE) demo

.PHONY: ablation
ablation: ## train variants of the detector and compare them, in output/ablation
	@dev/setup.sh demo
	$(IN_ENV) $(PYTHON_OF_ENV) $(PROJECT)/tools/ablation.py --output output/ablation $(ABLATION_ARGS)

.PHONY: gpu-check
gpu-check: ## build, check and measure on this machine's GPUs, with a report in output/gpu
	@dev/setup.sh test
	$(IN_ENV) $(PYTHON_OF_ENV) $(PROJECT)/tools/gpu_check.py --output output/gpu $(GPU_ARGS)

.PHONY: docs
docs: ## generate docs/config.md, the list of config keys, from config.py
	@dev/setup.sh test
	$(IN_ENV) $(PYTHON_OF_ENV) dev/config_page.py

.PHONY: lint
lint: ## check code and formatting with ruff
	@dev/setup.sh lint
	$(RUFF) check $(RUFF_CONFIG) $(LINTED)
	$(RUFF) format --check $(RUFF_CONFIG) $(LINTED)

.PHONY: format
format: ## format the code and apply safe fixes with ruff
	@dev/setup.sh lint
	$(RUFF) check --fix $(RUFF_CONFIG) $(LINTED)
	$(RUFF) format $(RUFF_CONFIG) $(LINTED)

.PHONY: env
env: ## only set up the environment (.venv, 5.5 GB)
	@dev/setup.sh env

# tools.txt is for any Python, since any Python may install it. requirements.txt takes ruff's version from
# it and keeps all other versions, unless LOCK_ARGS has --upgrade.
COMPILE := .tools/bin/uv pip compile --quiet --generate-hashes --custom-compile-command "make lock" $(LOCK_ARGS)

.PHONY: lock
lock: ## regenerate dev/*.txt from dev/*.in
	@ENV= dev/setup.sh lint
	$(COMPILE) --universal --python-version 3.8 dev/tools.in --output-file dev/tools.txt
	$(COMPILE) --python-version 3.10 --python-platform x86_64-manylinux_2_28 --constraint dev/tools.txt \
	    --override dev/overrides.txt dev/requirements.in --output-file dev/requirements.txt

.PHONY: clean
clean: ## remove builds and caches, but neither the environments nor output/
	rm -rf $(PROJECT)/build $(PROJECT)/*.egg-info $(PROJECT)/centripetalnet/_C*.so
	rm -rf .pytest_cache .ruff_cache .hypothesis $(PROJECT)/.pytest_cache $(PROJECT)/.hypothesis
	find dev projects -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environments too
	rm -rf .venv .tools
