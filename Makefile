# The verbs of this repository; each does the set-up that it needs.
#   DEVICE=cpu|gpu   instead of what the machine has       VLLM=0.26|0.33   which release on a GPU
#   MODEL=...        another model for `make bench`        PYTHON=...       the interpreter for VENV, instead of looking
#   VENV=...         the environment, instead of .venv    PROFILES=...     of `make bench`, instead of baseline and fp8

override VENV := $(or $(VENV),.venv)
VLLM ?= 0.26
PROFILES ?= baseline fp8
export PYTHON VENV DEVICE VLLM
unexport PYTHONHOME PYTHONPATH

.PHONY: setup test test-all bench report lint lock patch clean

setup:
	@scripts/setup.sh

PYTEST = "$$VENV/bin/python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

# `make test`, then the tests that are long by their nature: everything that needs no GPU, but for `-m compile`.
test-all: test
	$(PYTEST) -m long

bench: export FP8_SINKS_BENCH_MODEL = $(MODEL)
bench: setup
	@"$$VENV/bin/fp8-sinks" bench serving $(PROFILES) $(if $(MODEL),--model "$(MODEL)")

report: setup
	"$$VENV/bin/fp8-sinks" bench report results --plots results/plots --glance README.md

lint: setup
	"$$VENV/bin/ruff" check .
	"$$VENV/bin/ruff" format --check .
	"$$VENV/bin/lint-imports" --no-cache --no-logo
	"$$VENV/bin/python" scripts/vague_names.py

# Rewrite locks/*.txt from locks/*.in.
lock:
	scripts/lock.sh

# Patch the installed FlashInfer; without one, a copy of its wheel in .flashinfer. Out again: fp8-sinks patch revert
patch: setup
	"$$VENV/bin/python" -m flashinfer_patches.fetch

# Remove what these verbs have made, but for runs/.
clean:
	@scripts/clean.sh
