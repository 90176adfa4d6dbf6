# Only Python >= 3.11 (with venv) and make are needed; `make setup PYTHON=/path/to/python3` chooses another Python.
.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint docs picture bench chaos hosts audit requirements format
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## makes .venv and installs the pinned requirements; quick when nothing has changed
	@PYTHON="$(PYTHON)" sh deploy/setup.sh

demo: setup ## the whole stack with a small local model: jobs run through it, then everything stops
	@$(BIN)/nowserving demo

up: setup ## the stack in the foreground until Ctrl-C (ARGS="--local-model --verbose")
	@$(BIN)/nowserving up $(ARGS)

# More processes than a small machine has cores: many tests wait for timers. Files keep the order of tests/order.py.
test: setup ## every test, a few files at a time (ARGS="-k line" for some, ARGS="-n0 -x" one after another)
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## ruff, mypy, import-linter, the chat page, the Dockerfile and docker-compose.yml
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict api models workers deploy cli
	@$(BIN)/lint-imports
	@$(BIN)/python -m deploy.checks.web_build check
	@$(BIN)/python -m deploy.checks.files
	@$(BIN)/python -m deploy.checks.reference check

picture: setup ## photographs a waiting ticket for the README (docs/images/ticket.png); needs Chromium
	@$(BIN)/python -m deploy.picture

docs: setup ## writes the reference pages in docs/reference from the code
	@$(BIN)/python -m deploy.checks.reference

format: setup ## puts the code into the house's shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## measures what the README claims
	@$(BIN)/python -m bench $(ARGS)

chaos: setup ## breaks a running stack in every way, each alone and then mixed for 30 minutes (ARGS="--only FLUSHALL --minutes 0"), then at every named point
	@$(BIN)/python -m tests.chaos $(if $(ARGS),$(ARGS),--write)
	@$(if $(ARGS),,HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest tests/faults tests/system/test_webhooks.py tests/system/test_conversations.py tests/stateful/test_job_properties.py tests/workers/limiter/test_limiter_properties.py tests/api/document/test_fuzz_document.py tests/api/http/test_fuzz_readers.py tests/stateful/test_state_machine.py tests/workers/runner/test_worker_memory.py tests/api/server/test_api_memory.py)

hosts: setup ## cuts and slows the network between the parts, each on a host of its own: every pair alone, then mixed for 20 minutes (root)
	@$(BIN)/python -m tests.hosts $(ARGS)

audit: setup ## asks PyPI and npm for known vulnerabilities of the pinned versions
	@$(BIN)/python -m deploy.checks.audit

requirements: setup ## compiles requirements/*.txt again after a change in pyproject.toml
	@$(COMPILE) pyproject.toml --extra embedded --extra local --extra bench --extra otel --extra dev -o requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra otel -o requirements/runtime.txt
	@echo 'litellm[proxy]' | $(COMPILE) - -o requirements/bench-peers.txt
