# make demo        set up and train a soft prompt on the example task (about six minutes on two cores)
# make test        set up and run the tests
# make check       lint, types, architecture
# make test-vllm   set up vLLM's CPU build in an environment of its own, and run its tests (minutes, 2 GB)

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
VENV_VLLM := .venv-vllm
STAMP_VLLM := $(VENV_VLLM)/.installed

.PHONY: demo test test-vllm check setup clean

demo: setup
	$(BIN)/python -m examples.helpdesk.demo

test: setup
	scripts/test

test-vllm: $(STAMP_VLLM)
	scripts/test-vllm

check: setup
	scripts/check

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	scripts/setup "$(PYTHON)" "$(VENV)"
	touch $(STAMP)

$(STAMP_VLLM): scripts/setup-vllm pyproject.toml
	scripts/setup-vllm "$(PYTHON)" "$(VENV_VLLM)"
	touch $(STAMP_VLLM)

clean:
	rm -rf $(VENV) $(VENV_VLLM)
