# Each target makes ready by itself what it needs. Variables:
#   PYTHON=/path/to/python3.10   make .venv with this interpreter
#   ENV=current                  use the active Python (or PYTHON) as it is: no .venv, no downloads
#   PYTEST_ARGS="-k corner"      more arguments for pytest
#   BENCH_ARGS="--only pooling"  more arguments for the benchmark
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
# An ENV in the shell's environment is a file that some shells read, and none of our business.
ifeq ($(origin ENV),command line)
$(error ENV=$(ENV) is unknown; the only choice is ENV=current)
endif
PYTHON_OF_ENV := .venv/bin/python
RUFF := .tools/bin/ruff
# What compiles at run time looks for ninja on the PATH.
IN_ENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
endif

# The one configuration for everything, as dev/ has none of its own.
RUFF_CONFIG := --config $(PROJECT)/pyproject.toml
LINTED := dev $(PROJECT)
# Only a test that hangs takes this long.
PYTEST := $(PYTHON_OF_ENV) -m pytest $(PROJECT)/tests --timeout 900

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@sed -n '/^#   /s/^# //p' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## train a small detector on pictures from installed packages and draw what it finds, in output/demo
	@dev/setup.sh demo
	$(IN_ENV) $(PYTHON_OF_ENV) $(PROJECT)/tools/run_demo.py --output output/demo

.PHONY: test
test: ## all tests but the slow ones
	@dev/setup.sh test
	$(IN_ENV) $(PYTEST) -m "not slow" $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: ## the slow tests
	@dev/setup.sh test
	$(IN_ENV) $(PYTEST) -m slow $(PYTEST_ARGS)

.PHONY: sanitize
sanitize: ## the operators' tests on a library that finds wrong addresses and undefined operations
	@dev/setup.sh test
	$(IN_ENV) dev/sanitize.sh $(PYTHON_OF_ENV) $(PYTEST_ARGS)

.PHONY: bench
bench: $(DEMO_MODEL) ## time and memory of the parts beside their goals, also as output/benchmark.json
	@dev/setup.sh demo
	$(IN_ENV) $(PYTHON_OF_ENV) $(PROJECT)/tools/benchmark.py --output output/benchmark.json --weights $(DEMO_MODEL) $(BENCH_ARGS)

# One of its lines is what lower precision costs in AP, for which it takes a trained model.
$(DEMO_MODEL):
	@$(MAKE) demo

.PHONY: docs
docs: ## write docs/config.md, the page of every config key, from config.py
	@dev/setup.sh test
	$(IN_ENV) $(PYTHON_OF_ENV) dev/config_page.py

.PHONY: lint
lint: ## what ruff has to say about code and formatting
	@dev/setup.sh lint
	$(RUFF) check $(RUFF_CONFIG) $(LINTED)
	$(RUFF) format --check $(RUFF_CONFIG) $(LINTED)

.PHONY: format
format: ## have ruff format the code and mend what it safely can
	@dev/setup.sh lint
	$(RUFF) check --fix $(RUFF_CONFIG) $(LINTED)
	$(RUFF) format $(RUFF_CONFIG) $(LINTED)

.PHONY: env
env: ## only make the environment ready (.venv, 5.5 GB)
	@dev/setup.sh env

# tools.txt is for any Python, since any Python may have to install it. requirements.txt takes ruff's
# version from it, and keeps every other version that it has already unless LOCK_ARGS says otherwise.
COMPILE := .tools/bin/uv pip compile --quiet --generate-hashes --custom-compile-command "make lock" $(LOCK_ARGS)

.PHONY: lock
lock: ## make dev/*.txt anew from dev/*.in
	@ENV= dev/setup.sh lint
	$(COMPILE) --universal --python-version 3.8 dev/tools.in --output-file dev/tools.txt
	$(COMPILE) --python-version 3.10 --python-platform x86_64-manylinux_2_28 --constraint dev/tools.txt \
	    --override dev/overrides.txt dev/requirements.in --output-file dev/requirements.txt

.PHONY: clean
clean: ## remove what was built and cached, but neither the environments nor output/
	rm -rf $(PROJECT)/build $(PROJECT)/*.egg-info $(PROJECT)/centripetalnet/_C*.so
	rm -rf .pytest_cache .ruff_cache .hypothesis $(PROJECT)/.pytest_cache $(PROJECT)/.hypothesis
	find dev projects -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environments too
	rm -rf .venv .tools
