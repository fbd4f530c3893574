# make demo        set up and train a soft prompt on the example task (about six minutes on two cores)
# make test        set up and run the tests
# make check       lint, types, architecture
# make test-vllm   set up vLLM's CPU build in an environment of its own, and run its tests (minutes, 2 GB)
# make test-engines  the same for exports to llama.cpp, MLX, PEFT and vLLM (minutes; writes docs/guides/engines.md)

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
VENV_VLLM := .venv-vllm
STAMP_VLLM := $(VENV_VLLM)/.installed
VENV_ENGINES := .venv-engines
STAMP_ENGINES := $(VENV_ENGINES)/.installed

.PHONY: demo test test-vllm test-engines check setup clean

demo: setup
	$(BIN)/python -m examples.helpdesk.demo

test: setup
	scripts/test

test-vllm: $(STAMP_VLLM)
	scripts/test-vllm

test-engines: $(STAMP_ENGINES) $(STAMP_VLLM)
	scripts/test-engines

check: setup
	scripts/check

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	scripts/setup "$(PYTHON)" "$(VENV)"
	touch $(STAMP)

$(STAMP_VLLM): scripts/setup-vllm pyproject.toml
	scripts/setup-vllm "$(PYTHON)" "$(VENV_VLLM)"
	touch $(STAMP_VLLM)

$(STAMP_ENGINES): scripts/setup-engines requirements.lock
	scripts/setup-engines "$(PYTHON)" "$(VENV_ENGINES)"
	touch $(STAMP_ENGINES)

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_ENGINES)
