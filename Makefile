PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Containers often set it. Here hundreds of processes would each compile the same modules.
unexport PYTHONDONTWRITEBYTECODE

# `make run` and `make test` set up a virtual environment with the pinned versions first; see README.md.
.PHONY: run test lint types clean

run: $(VENV)/installed
	$(BIN)/python -m sweep.run all_pairs

# All at a time; each group of tests has a log of its own, which is shown when it is done.
test: $(VENV)/installed
	@$(MAKE) --no-print-directory -k -j lint types quick_tests engine_tests sweep_tests

lint: $(VENV)/installed
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

quick_tests: MARK = not engines and not sweeps
engine_tests: MARK = engines
sweep_tests: MARK = sweeps

%_tests: $(VENV)/installed
	@echo "$@: running ($(VENV)/$@.log)"
	@$(BIN)/python -m pytest -q -rs --durations=8 -m "$(MARK)" >$(VENV)/$@.log 2>&1; code=$$?; cat $(VENV)/$@.log; exit $$code

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
