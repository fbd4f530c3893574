# make demo    set up and train a soft prompt on the example task (about six minutes on two cores)
# make test    set up and run the tests
# make check   lint, types, architecture

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: demo test check setup clean

demo: setup
	$(BIN)/python -m examples.helpdesk.demo

test: setup
	scripts/test

check: setup
	scripts/check

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	scripts/setup "$(PYTHON)" "$(VENV)"
	touch $(STAMP)

clean:
	rm -rf $(VENV)
