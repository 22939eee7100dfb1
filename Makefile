# make demo | test | test-slow | check | lock | sbom: each sets itself up first.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
# Apart from the rest: it brings what every process of Ray would load where it is there, for more than a second.
BILL := .venv/bill
BILL_TOOL := cyclonedx-bom==7.5.0

.PHONY: demo test test-slow check lock sbom

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

lock: $(READY)
	@# All that images install, with the hash of every file. What stands in the lock already stays, where it fits.
	sed '/^# Checks and tests/,$$d' requirements.txt | $(BIN)/uv pip compile - --quiet --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
		--output-file requirements.lock

sbom: $(READY)
	mkdir -p dist
	$(BILL)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file dist/sbom.cdx.json

$(READY): requirements.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(PYTHON) -m venv $(BILL)
	$(BILL)/bin/python -m pip install --quiet --disable-pip-version-check $(BILL_TOOL)
	touch $(READY)
