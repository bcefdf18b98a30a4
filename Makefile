# Needs Python 3.11 or later on PATH, nothing else. `make` or `make help` lists the targets.

PY := .venv/bin/python
STAMP := .venv/.installed
PIP_FLAGS := -qq --disable-pip-version-check
SERVER := .tools/tritonserver
SERVED_TESTS := tests/export/test_triton_served.py tests/benchmarks/test_triton_load.py
# Two processes suit the two cores that the suite is sized for. Each begins with one half, so that few fixtures are made twice.
PYTEST_ARGS ?= -n 2 --dist worksteal
# The first interpreter that runs, is new enough and can create environments. The tested version comes first. Being on PATH
# is not enough: a version manager leaves launchers there for versions that are not installed.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3 python
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help env test slow test-server tritonserver demo lint format wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP) ## create .venv and install everything the tests need (again only when the requirements change)

$(STAMP): pyproject.toml constraints.txt
	@if ! [ -x $(PY) ]; then \
	    for python in $(PYTHONS); do "$$python" -c '$(PROBE)' 2>/dev/null && break; python=; done; \
	    [ -n "$$python" ] || { echo "error: no Python 3.11 or later (with its venv module) found on PATH; tried: $(PYTHONS)" >&2; exit 2; }; \
	    echo "creating .venv with $$("$$python" --version)"; \
	    "$$python" -m venv .venv; \
	fi
	@echo "installing wfvae and its requirements into .venv (a minute or more, without output)"
	$(PY) -m pip install $(PIP_FLAGS) -e '.[export,train,eval,openvino,rtx,tensorboard,ray,benchmarks,dev]' -c constraints.txt
	@touch $@

test: env ## run the test suite; options for pytest in PYTEST_ARGS='-k haar'
	$(PY) -m pytest -q -m 'not slow' $(PYTEST_ARGS)

slow: env ## run the tests that take long (peers from diffusers, the largest preset, processes under torchrun, served tests)
	$(PY) -m pytest -q -m slow $(PYTEST_ARGS)

test-server: tritonserver ## run the tests that need a real Triton server, which is fetched first
	$(PY) -m pytest -q $(SERVED_TESTS)

tritonserver: env $(SERVER)/.unpacked ## fetch a Triton server for the tests (55 MB, Linux x86-64) into .tools/

# The server's Python backend has one program per version of Python, and looks for one name.
$(SERVER)/.unpacked: tests/fixtures/tritonserver.txt
	rm -rf $(SERVER)
	$(PY) -m pip download $(PIP_FLAGS) --no-deps --require-hashes -r $< -d $(SERVER)
	$(PY) -m zipfile -e $(SERVER)/*.whl $(SERVER)
	rm $(SERVER)/*.whl
	cd $(SERVER)/pytriton/tritonserver && chmod +x bin/tritonserver python_backend_stubs/*/* && \
	version=$$($(abspath $(PY)) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	if [ -d "python_backend_stubs/$$version" ]; then cp "python_backend_stubs/$$version/"* backends/python/; fi
	@touch $@

demo: env ## make a clip, a tiny model and a bundle, and show in demo/ that streaming gives what direct inference gives
	.venv/bin/wfvae demo --out demo

lint: env ## ruff (rules and format), mypy and the rules of who may import whom
	@failed=; check() { echo "+ $$*"; "$$@" || failed=yes; }; \
	check $(PY) -m ruff check; \
	check $(PY) -m ruff format --check; \
	check $(PY) -m mypy; \
	check .venv/bin/lint-imports --no-logo --no-cache; \
	[ -z "$$failed" ]

format: env ## rewrite the sources the way `make lint` wants them
	$(PY) -m ruff check --select I --fix -q
	$(PY) -m ruff format

wheel: env ## build dist/*.tar.gz, and dist/*.whl from it
	$(PY) -m build -o dist .

clean: ## remove what is built, measured or cached; .venv stays
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
