# Two commands on a fresh machine with python3 (3.11 or newer, with venv) and make:
#   make demo    sample traffic, rolled up and served
#   make test    the whole test suite
# Both make .venv from requirements.lock when it is missing or older than the lock.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check format lock docs clean

demo: $(READY)
	@$(BIN)/keytally demo

test: $(READY)
	$(BIN)/python -m pytest -n $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)') --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Hashes and versions only: where they are downloaded from is the machine's business. A package that another one needs
# with an extra is pinned with the extra and without: with hashes, pip refuses the extra that no line names, and
# pip before 23.3 refuses the bare name.
lock: $(READY)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --no-strip-extras \
		--no-emit-index-url --no-annotate --no-header --extra dev --extra redis pyproject.toml -o requirements.lock
	awk '/^[^ ]/ { printf "%s", bare block; block = bare = "" } \
		/^[A-Za-z0-9._-]+\[/ { extra = 1 } /^[A-Za-z0-9._-]+=/ { extra = 0 } \
		{ block = block $$0 "\n"; sub(/\[[^]]*\]==/, "=="); if (extra) bare = bare $$0 "\n" } \
		END { printf "%s", bare block }' requirements.lock > requirements.lock.new
	mv requirements.lock.new requirements.lock

# Writes what is generated in the pages: the README's column tables, docs/openapi.json, what
# the page on notebooks prints, LiteLLM's format for the price book, and the image's part of the lock.
docs: $(READY)
	KEYTALLY_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/test_docs.py \
		tests/producers/test_recipes.py::test_the_variant_for_the_price_book_is_the_shipped_format_with_the_documented_changes \
		tests/test_usage.py::test_the_page_on_notebooks_shows_what_its_code_prints \
		tests/test_deploy.py::test_the_image_gets_what_it_needs_to_run_and_no_more

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "keytally needs Python 3.11 or newer; make PYTHON=python3.12 ... uses another one")'
	@echo "Making .venv from requirements.lock. Once, and about a minute."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)
