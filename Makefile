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
	$(BIN)/python -m pytest -q -rs --durations=12 -n 2 --dist loadgroup

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
