# Developer commands; `make help` lists them. Everything lives in .venv and build/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ENGINE ?= replay
PYTEST := $(BIN)/python -m pytest -q
# one worker a core; tests of a file outside tests/fast stay together, they share servers
PARALLEL := -n auto --dist loadgroup
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# tests start the command a thousand times; without its bytecode each start compiles it
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast search real-parts lint types check bench bench-alarms bench-boards bench-tap compare-peers docs alarms dashboards pictures golden dist clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/python-is-new-enough:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "venv is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/installed: $(VENV)/python-is-new-enough setup.cfg pyproject.toml src/vllm_opsctl/__init__.py
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed ## The main job: an incident, the sidecar, the verdict (ENGINE=vllm: on a real vLLM)
ifeq ($(ENGINE),vllm)
	@$(MAKE) --no-print-directory $(VENV)/installed-dev
	@PYTHONPATH=tests $(BIN)/python tests/demo.py --engine vllm
else
	@PYTHONPATH=tests $(BIN)/python tests/demo.py --engine replay
endif

test-fast: $(VENV)/installed-dev ## The inner loop: lint, types, and every test that needs nothing
	@$(MAKE) --no-print-directory lint types
	$(PYTEST) tests/fast $(PARALLEL)

test: $(VENV)/installed-dev ## Lint, types and all tests that this machine has the parts for
	@$(MAKE) --no-print-directory lint types
	@failed=0; \
	$(PYTEST) $(PARALLEL) -m "not engine" --junitxml=build/tests/parallel.xml || failed=1; \
	$(PYTEST) -m engine --junitxml=build/tests/engine.xml || failed=1; \
	$(BIN)/python tests/slowest.py build/tests/parallel.xml build/tests/engine.xml; \
	exit $$failed

search: $(VENV)/installed-dev ## Property tests ten times with new examples (make test repeats the same ones)
	for round in 1 2 3 4 5 6 7 8 9 10; do \
	  $(PYTEST) tests/fast $(PARALLEL) -m hypothesis --hypothesis-profile=new || exit 1; \
	done

real-parts: ## Bring a real vLLM (CPU, about 3.4 GB), Prometheus, Alertmanager, MiniStack, Chromium
	tests/parts/install.sh

lint: $(VENV)/installed-dev ## ruff and the direction of dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev ## mypy, strict, sources, tests and what makes the documents
	$(BIN)/mypy
	$(BIN)/mypy tests docs

check: test dist ## Everything that CI runs after make real-parts

bench: $(VENV)/installed-dev ## The benchmarks; prints tables, writes build/bench/*.json
	PYTHONPATH=tests $(BIN)/python tests/bench/start_up.py
	PYTHONPATH=tests $(BIN)/python tests/bench/page_cost.py
	PYTHONPATH=tests $(BIN)/python tests/bench/sidecar_cost.py
	PYTHONPATH=tests $(BIN)/python tests/bench/fleet.py

bench-alarms: $(VENV)/installed-dev ## The alarm policy over synthetic months, beside static thresholds
	PYTHONPATH=tests $(BIN)/python tests/bench/alarm_policy.py $(ARGS)

bench-boards: $(VENV)/installed-dev ## How long panels take on 200 targets and six hours (needs Prometheus)
	PYTHONPATH=tests $(BIN)/python tests/bench/board_cost.py

bench-tap: $(VENV)/installed-dev ## What the tap costs inside a real vLLM (needs make real-parts; about ten minutes)
	PYTHONPATH=tests $(BIN)/python tests/bench/tap_cost.py $(ARGS)

compare-peers: $(VENV)/installed-dev ## The recordings, diagnosed by opsctl and by two peers (downloads them)
	PYTHONPATH=tests $(BIN)/python tests/bench/compare_peers.py

accuracy: $(VENV)/installed-dev ## How often diagnosis is right, on every recording; prints tables
	@PYTHONPATH=tests $(BIN)/python tests/accuracy.py $(ARGS)

docs: $(VENV)/installed-dev ## Write the generated pages, make the transcripts (ARGS=ID: only that one)
	$(BIN)/python docs/generate.py
	PYTHONPATH=tests $(BIN)/python docs/transcripts.py $(ARGS)

alarms: $(VENV)/installed-dev ## Rebuild the example alarms; review the difference
	$(BIN)/python tests/example_alarms.py

dashboards: $(VENV)/installed-dev ## Rebuild the example boards; review the difference
	$(BIN)/python tests/example_boards.py

pictures: $(VENV)/installed-dev ## Draw every board on a real overload (needs make real-parts and npm)
	$(BIN)/python tests/pictures.py

golden: $(VENV)/installed-dev ## Rewrite the golden files; review the difference
	$(BIN)/python tests/rewrite_golden.py

dist: $(VENV)/installed-dev ## Build sdist and wheel, check them, and run the wheel in a bare environment
	rm -rf dist build/bare
	$(BIN)/python -m build --quiet --outdir dist .
	$(BIN)/check-wheel-contents --toplevel vllm_opsctl dist/*.whl
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd build && bare/bin/opsctl runbook list >/dev/null && bare/bin/opsctl diagnose \
	  --recording ../tests/recordings/baseline.jsonl.gz

clean: ## Remove what was built (not the real parts)
	rm -rf $(VENV) dist build/bare build/bench *.egg-info
