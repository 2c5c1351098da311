PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# `make run` and `make test` set up a virtual environment with the pinned versions first; see README.md.
.PHONY: run test clean

run: $(VENV)/installed
	$(BIN)/python -m sweep.run all_pairs

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(BIN)/python -m pytest -q -rs --durations=8 -m "not engines" >$(VENV)/quick_tests.log 2>&1 & quick=$$!; \
	trap 'kill $$quick' INT TERM; \
	$(BIN)/python -m pytest -q -rs --durations=8 -m engines; engines=$$?; \
	wait $$quick; others=$$?; cat $(VENV)/quick_tests.log; exit $$((engines | others))

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
