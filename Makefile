# One command for each thing a developer does; `make` alone lists them.
#
# Variables:
#   PYTHON   the interpreter that the environment is made from (3.11 or 3.12)
#   VENV     where the environment is
#   WORKERS  test processes; each compiles on its own, so more than cores is waste
#   ARGS     more arguments for the command, as in: make test ARGS='-k masks'
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

PY := $(VENV)/bin/python
STAMPS := $(addprefix $(VENV)/.installed-,run test dev interop)
# worksteal keeps most of a file in one process, and goes on after a crash.
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist worksteal --durations=10

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart test test-all test-interop test-slurm lint format typecheck clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/.installed-run ## train a small model on drawn scenes (CPU, 5 minutes)
	$(PY) -m ijepa_jax.main --config=configs/quickstart.py \
	  --workdir=runs/quickstart $(ARGS)

test: $(VENV)/.installed-test ## run the tests, except those marked slow
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-test ## run all tests
	$(PYTEST) -m '' -o faulthandler_timeout=1800 $(ARGS)

# timm asks for torchvision, whose version must be the one made for torch.
test-interop: $(VENV)/.installed-interop ## test against PyTorch, Hugging Face and timm
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps \
	  'timm>=1.0.31,<1.1' 'torchvision==0.28.0'
	$(PYTEST) tests/interop $(ARGS)

test-slurm: $(VENV)/.installed-test ## test the launcher in a SLURM; installs Debian's, as root
	@tests/slurm/install.sh
	$(PY) -m pytest tests/slurm -o faulthandler_timeout=1800 --durations=10 $(ARGS)

lint: $(VENV)/.installed-dev ## check style and format, change nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.installed-dev ## mend style and format
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

typecheck: $(VENV)/.installed-dev ## check types
	$(PY) -m mypy

clean: ## remove the environment and caches, never runs/
	rm -rf .venv .venv-* build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that the extras below are installed and that no requirement has
# changed since. The environment itself is made once; `make clean` to start over.
$(VENV)/.installed-run: EXTRAS :=
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-interop: EXTRAS := [test,interop]
$(VENV)/.installed-dev: EXTRAS := [test,dev]

$(STAMPS): requirements.txt setup.cfg pyproject.toml
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  version=$$($(PYTHON) -c \
	    'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	  case "$$version" in \
	    3.11|3.12) ;; \
	    *) echo "error: Python 3.11 or 3.12 is needed, '$(PYTHON)' is" \
	      "$${version:-not a Python}; name one, as in:" \
	      "make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 2 ;; \
	  esac; \
	  $(PYTHON) -m venv $(VENV); \
	fi
	@echo "Installing ijepa_jax$(EXTRAS) into $(VENV): a few minutes, once."
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.$(EXTRAS)'
	@touch $@
