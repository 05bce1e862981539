# make demo   install into .venv and run the built-in study
# make test   install with the test extra and run the tests
# make objectives   train every objective to its known optimum, and write docs/objectives.md
# make lint   ruff, mypy and the import contracts
PYTHON ?= python3
BIN := .venv/bin
STUDY ?= runs/demo

.PHONY: demo test lint objectives clean

demo: .venv/installed
	$(BIN)/preflab compare reviews --out $(STUDY)

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/installed-test
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/mypy
	$(BIN)/lint-imports

objectives: .venv/installed-test
	$(BIN)/python benchmarks/objectives.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preflab needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv build src/*.egg-info
