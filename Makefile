PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -rs --durations=8

# `make run` and `make test` set up a virtual environment with the pinned versions first; see README.md.
.PHONY: run test clean

run: $(VENV)/installed
	$(BIN)/python -m sweep.run all_pairs

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(PYTEST) -m "not engines and not losses and not slow" >$(VENV)/quick_tests.log 2>&1 & quick=$$!; \
	$(PYTEST) -m "losses or slow" >$(VENV)/loss_tests.log 2>&1 & losses=$$!; \
	trap 'kill $$quick $$losses' INT TERM; \
	$(PYTEST) -m engines; engines=$$?; \
	wait $$losses; lost=$$?; cat $(VENV)/loss_tests.log; \
	wait $$quick; others=$$?; cat $(VENV)/quick_tests.log; exit $$((engines | lost | others))

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
