# The first target that runs makes .venv and installs into it; from then on every target starts at once.
# It installs again when pyproject.toml or constraints.txt changes, or when an install was cut off.

PYTHON ?= python3
WORKERS ?= 2
# What `make lab` opens: the walkthrough's own executed copy where there is one.
NOTEBOOK ?= $(if $(wildcard walkthrough/01_walkthrough.ipynb),walkthrough,notebooks)/01_walkthrough.ipynb
# What `make tune`, `make study` and `make tables` work on.
STUDY ?= results/cifar100
# For JupyterLab, such as --no-browser or --port 9000.
LAB_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
UNFINISHED := $(VENV)/.installing
EXTRAS := notebooks,dev,timm,tuning,hub,tracking,deploy,cluster
# The exact versions, which hold for Python 3.11.
EXACT = $$($(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')
COMMA := ,
# nbval, which only the notebooks need, takes seconds to import.
PYTEST := $(BIN)/python -m pytest -p no:nbval
# One thread for each worker's torch: more of them than cores only get in each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
UNIT := $(ONE_THREAD) $(PYTEST) -n $(WORKERS) --dist worksteal
# Two threads a worker, which sleep while they wait.
THREADED := OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OMP_WAIT_POLICY=passive CORSD_TEST_THREADS=2 $(PYTEST) -n $(WORKERS) --dist worksteal
# Without bytecode on disk each worker compiles all tests, and each process that they start the library: seconds every time.
unexport PYTHONDONTWRITEBYTECODE

# The files with tests of a marker: to collect the others would import them for nothing.
MARKED = $$(grep -lr --include='*.py' 'mark\.$(1)\b' tests)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv walkthrough lab test test-fast unit fuzz test-notebooks test-min test-wheel lint types format notebooks notebook-texts course slides grading handout docs tune study tables bench samples clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-16s%s\n' "$$name" "$$text"; done

venv: $(STAMP)  ## make .venv and install the package with everything it needs

# The stamp carries the time at which the install began. The marker of an unfinished install, with the process id of its make,
# stays where one was cut off, and then the venv is made anew: half a package in it could look like a whole one to pip.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and PYTHON=$(PYTHON) is not that; name one, as in: make PYTHON=python3.12 test" >&2; \
		exit 1; }
	@installer=$$(cat $(UNFINISHED) 2>/dev/null) && kill -0 "$$installer" 2>/dev/null && { \
		echo "process $$installer is installing into $(VENV): wait for it (if it is not, remove $(UNFINISHED))" >&2; exit 1; } || true
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(STAMP) && echo $$PPID >$(UNFINISHED)
	@echo "Installing into $(VENV): some minutes the first time, several GB where torch comes with CUDA"
	@exact=$(EXACT) && \
		$(BIN)/python -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]" $$exact
	@mv $(UNFINISHED) $(STAMP)

# Sphinx is installed when the site is first built.
$(DOCS_STAMP): $(STAMP)
	@exact=$(EXACT) && $(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]" $$exact
	@touch $(DOCS_STAMP)

walkthrough: venv  ## train on the embedded data, print the table, execute the first notebook, write its HTML
	$(BIN)/corsd walkthrough

lab: venv  ## open the first notebook in JupyterLab
	$(BIN)/python -m jupyter lab $(LAB_FLAGS) $(NOTEBOOK)

test: lint types unit test-notebooks  ## everything: lint, types, unit tests, notebooks

test-fast: venv  ## unit tests without the slow and the browser ones
	$(UNIT) -m "not slow and not browser and not alone"

unit: venv  ## all unit tests
	$(UNIT) -m "not alone"
	OMP_NUM_THREADS=1 $(PYTEST) -m alone $(call MARKED,alone)
	$(THREADED) -m threads $(call MARKED,threads)

fuzz: venv  ## open 10,000 runs and studies with a file made wrong at random; an hour or so
	CORSD_FUZZ=10000 $(UNIT) tests/test_fuzz.py

# In a copy without runs: what a student has trained is neither read nor touched.
# Each notebook in a folder of its own: two that train the same run at the same time would be in each other's way.
test-notebooks: venv  ## execute the notebooks and compare their marked outputs
	@rm -rf build/notebooks && for notebook in notebooks/*.ipynb; do \
		folder=build/notebooks/$$(basename $$notebook .ipynb); mkdir -p $$folder && cp $$notebook $$folder; done
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=300 build/notebooks/*/*.ipynb

# Anew each time: what an earlier installation left would hide that a bound is wrong. Without the extra "dev", because its
# pytorch-lightning would replace the lightning_fabric under test.
test-min:  ## the fast tests with the oldest versions that pyproject.toml allows, in .venv-min; several GB
	$(PYTHON) -m venv --clear .venv-min
	.venv-min/bin/python tests/lowest.py >.venv-min/lowest.txt
	.venv-min/bin/python -m pip install --disable-pip-version-check -c .venv-min/lowest.txt -e ".[$(subst dev$(COMMA),,$(EXTRAS))]" \
		pytest pytest-xdist hypothesis PyYAML pytorch-metric-learning
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv-min/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not browser and not alone" --ignore tests/test_packaging.py

test-wheel: venv  ## build wheel and source archive, try the wheel in an empty environment and the tests from the archive; several GB
	$(BIN)/python tests/try_wheel.py

lint: venv  ## ruff: rules and format; notebooks in step with their sources
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python notebooks/build.py --check

types: venv  ## mypy on the library
	$(BIN)/mypy

format: venv  ## let ruff mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: venv  ## execute the sources into notebooks/*.ipynb, outputs and pictures included
	$(BIN)/python notebooks/build.py

notebook-texts: venv  ## make the notebooks anew without executing them, where only text has changed
	$(BIN)/python notebooks/build.py --text

course: venv  ## pages of all notebooks in course/, to print or to read without JupyterLab
	$(BIN)/python notebooks/build.py --course

slides: venv  ## slides of two notebooks in slides/, a file each that needs no network
	$(BIN)/python notebooks/build.py --slides

grading: venv  ## a course folder of nbgrader in grading/, with an assignment for each notebook; nbgrader is in the extra "teaching"
	$(BIN)/python notebooks/build.py --grading

handout: venv  ## copies of the notebooks for students in handout/, without outputs and with folded answers
	$(BIN)/python notebooks/build.py --handout

docs: $(DOCS_STAMP)  ## build the documentation site in docs/_build/html; warnings and broken links are errors
	$(BIN)/python docs/build.py

tune: venv  ## search the weights of the variants of STUDY on images held out of train; goes on where it was stopped
	$(BIN)/corsd tune $(STUDY)

study: venv  ## train what STUDY has no record of, then make its tables and figures; goes on where it was stopped
	$(BIN)/corsd compare $(STUDY)

tables: venv  ## make the tables and figures of STUDY from its records, in README.md too where it has the study's marks
	$(BIN)/corsd compare $(STUDY) --tables $$(grep -q '<!-- $(notdir $(STUDY)) -->' README.md && echo --readme README.md)

bench: venv  ## measure speed, write results/bench.json and the table in results/README.md
	$(BIN)/corsd bench --out results/bench.json --readme results/README.md

samples:  ## list the committed runs with their checksums, and pack them into build/runs for a release
	$(PYTHON) results/samples.py build/runs

clean:  ## remove caches and build products; .venv, data and runs stay
	rm -rf build dist handout docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find corsd_lib tests notebooks docs \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
