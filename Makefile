# make demo        set up and train a soft prompt on the example task (about six minutes on two quiet cores; it says how many on yours)
# make test        set up and run the tests
# make check       lint, types, architecture, spelling
# make docs        build the docs site into site/ (two minutes)
# make test-vllm   set up vLLM's CPU build in an environment of its own, and run its tests (minutes, 2 GB)
# make test-engines  the same for exports to llama.cpp, MLX, PEFT and vLLM (minutes; writes docs/guides/engines.md)
# make docs-check  look at the built site in Chromium: accessibility, size, nothing from elsewhere
# make test-extras  install the wheel and each extra in empty environments, and use them once (minutes, gigabytes)
# make test-clients  the same for clients of the server, of Python and Node (minutes; writes docs/guides/clients.md)

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
STAMP_DOCS := $(VENV)/.installed-docs
VENV_VLLM := .venv-vllm
STAMP_VLLM := $(VENV_VLLM)/.installed
VENV_ENGINES := .venv-engines
STAMP_ENGINES := $(VENV_ENGINES)/.installed
VENV_CLIENTS := .venv-clients
STAMP_CLIENTS := $(VENV_CLIENTS)/.installed

.PHONY: demo test docs docs-check test-extras test-vllm test-engines test-clients check setup clean

demo: setup
	$(BIN)/python -m examples.helpdesk.demo

test: setup
	scripts/test

docs: setup $(STAMP_DOCS)
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

docs-check: docs
	$(BIN)/python scripts/site-check site

test-extras: setup
	scripts/test-extras

test-vllm: $(STAMP_VLLM)
	scripts/test-vllm

test-engines: $(STAMP_ENGINES) $(STAMP_VLLM)
	scripts/test-engines

test-clients: setup $(STAMP_CLIENTS)
	scripts/test-clients

check: setup
	scripts/check

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	scripts/setup "$(PYTHON)" "$(VENV)"
	touch $(STAMP)

$(STAMP_DOCS): requirements-docs.lock $(STAMP)
	scripts/setup-docs "$(VENV)"
	touch $(STAMP_DOCS)

$(STAMP_VLLM): scripts/setup-vllm pyproject.toml
	scripts/setup-vllm "$(PYTHON)" "$(VENV_VLLM)"
	touch $(STAMP_VLLM)

$(STAMP_ENGINES): scripts/setup-engines requirements.lock
	scripts/setup-engines "$(PYTHON)" "$(VENV_ENGINES)"
	touch $(STAMP_ENGINES)

$(STAMP_CLIENTS): scripts/setup-clients $(STAMP)
	scripts/setup-clients "$(PYTHON)" "$(VENV_CLIENTS)"
	touch $(STAMP_CLIENTS)

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_ENGINES) $(VENV_CLIENTS)
