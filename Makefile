# make demo | test | test-slow | check: each sets itself up first.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow check

demo: $(READY)
	$(BIN)/python -m pipeline demo

test: $(READY)
	@# Tests that start Ray wait most of the time for its processes: the others run beside them, and are shown behind.
	$(BIN)/python -m pytest -m "not slow and not ray" > .venv/others.txt 2>&1 & others=$$!; \
	$(BIN)/python -m pytest -m "not slow and ray"; started=$$?; \
	wait $$others; others=$$?; cat .venv/others.txt; exit $$((started | others))

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $(READY)
