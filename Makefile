# Needs Python >= 3.10, make and a package index. Everything that is made lies in .venv/ and _build/.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
N ?=

.PHONY: help book notebooks pdf poster wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

book: $(READY) ## execute every notebook (tutorial profile), render the book, print the page to open
	@$(PY) tools/run_notebooks.py --out _build/executed
	@$(PY) tools/build_book.py

notebooks: $(READY) ## re-execute the notebooks and store their outputs (one of them: make notebooks N=03)
	@$(PY) tools/run_notebooks.py $(N)

pdf: $(READY) ## print the book, with its stored outputs, to _build/book.pdf; needs Chromium
	@$(PY) tools/build_book.py --committed
	@$(PY) tools/print_book.py _build/committed/_build/html _build/book.pdf

poster: $(READY) ## write a page for a talk to _build/poster.html, and poster.pdf if Chromium is found
	@PYTHONPATH=tools $(PY) scripts/poster.py _build

wheel: $(READY) ## write the package, with data, weights, pages and results, as one file to _build/dist
	@rm -rf build && $(PY) -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w _build/dist . && rm -rf build
	@ls -sh _build/dist/rdc-*.whl

# <teachers>: from here to the closing line, targets that the student edition does not have
.PHONY: test types committed-notebooks committed-book bench lint student instructor slides assignment
test: $(READY) ## style, types, unit tests, doctests, committed notebooks (nbval), book build, page checks, access
	@$(PY) -m ruff check -q .
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist worksteal
	@$(MAKE) --no-print-directory -j 3 types committed-book committed-notebooks

types:
	@$(PY) -m mypy
committed-notebooks: # beside the book, which is one process for minutes
	@$(PY) tools/check_notebooks.py
committed-book:
	@$(PY) tools/build_book.py --committed
	@$(PY) tools/check_access.py _build/committed/_build/html

bench: $(READY) ## measure speed; writes results/bench.json
	@$(PY) -m benchmarks

lint: $(READY) ## check style and types
	@$(PY) -m ruff check .
	@$(PY) -m mypy

student: $(READY) ## write the book without solutions to _build/student
	@rm -rf _build/student && mkdir -p _build
	@PYTHONPATH=tools $(PY) course/student_edition.py _build/student

instructor: $(READY) ## render the book with the notes for instructors to _build/instructor
	@$(PY) tools/build_book.py --instructor

slides: $(READY) ## make the slides of the four sessions, offline, in _build/slides
	@rm -rf _build/slides
	@$(PY) -m sphinx -q -W -b revealjs course/slides _build/slides
	@echo "The slides are ready. Open _build/slides/index.html; key S shows the notes"

assignment: student ## zip a session's notebooks without solutions, and the package, for a learning platform (N=1 ... 4)
	@PYTHONPATH=tools $(PY) course/assignment.py $(or $(N),1) _build

# </teachers>
clean: ## remove what was built; .venv stays
	rm -rf _build

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "error: Python 3.10 or newer is needed; try make PYTHON=python3.12")'
	@$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages into $(VENV) (once; minutes, depending on the network) ..."
	@$(PY) -m pip install --disable-pip-version-check -q -r requirements.txt
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $(READY)
