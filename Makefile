# make run    install what is needed into .venv and open the dashboard on http://127.0.0.1:8501
# make test   the same with the test tools and a Chromium, then all tests
# make bench  measure against the peers of bench/requirements.txt (an environment of its own)
# make bench-engine  what the engine's own work costs (needs no peers)
# make bench-disk    a model larger than the memory it may take (5 GB of disk, 11 GB of memory for the comparison)
# make families  examine every MoE family of the installed transformers and write docs/families.md
# make viewers  20 viewers clicking every 5 s for 5 minutes, one of them running studies: every view checked, timed
# make soak     30 minutes of them at random, and what is left when they are gone
# make first-page  fresh servers in Chromium, beside an empty Streamlit app: seconds until the page, its charts, a stored view
# make crashes  kill -9 at KILLS=200 random moments of everything that writes; compare what is left
# make closing  SIGTERM and SIGINT to a server that is idle, traces, studies, loads: prints how long it took to go
# make lint   ruff
# make audit  pip-audit: constraints.txt against the advisory database (exit 2: not clean, or it could not be reached)
#
# VENV=folder and PORT=8502 change where things go; ARGS="-k store" is passed to pytest (or to the benchmark);
# TORCH_INDEX=URL takes torch from that index.

VENV ?= .venv
PORT ?= 8501
ARGS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# On Linux the default torch brings several GB of CUDA libraries. PyTorch's own site names the index of its CPU-only
# builds: TORCH_INDEX=that address.
TORCH_INDEX ?=

# Idle OpenMP threads must not spin: on a loaded machine that made the same work many times slower.
export OMP_WAIT_POLICY = PASSIVE
export GOMP_SPINCOUNT = 0

.PHONY: run test bench bench-engine bench-disk viewers soak first-page families crashes closing lint chromium clean help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile | sed '/^VENV/,$$d'

run: $(VENV)/.installed
	$(BIN)/python serve.py --server.address 127.0.0.1 --server.port $(PORT)

test: $(VENV)/.installed-test chromium
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .

# In an environment of its own: the auditor's packages are none of ours.
build/audit/.installed: requirements-audit.txt
	"$(PYTHON)" -m venv build/audit
	build/audit/bin/python -m pip --disable-pip-version-check install -r requirements-audit.txt
	@touch $@

audit: build/audit/.installed
	build/audit/bin/python .ci/audit.py constraints.txt

families: $(VENV)/.installed-test
	$(BIN)/python -m tests.matrix

KILLS ?= 200
crashes: $(VENV)/.installed-test
	folder=$$(mktemp -d) && OMP_NUM_THREADS=1 $(BIN)/python tests/crashes.py "$$folder" $(KILLS) 0; status=$$?; \
		rm -rf "$$folder"; exit $$status

closing: $(VENV)/.installed-test
	folder=$$(mktemp -d) && $(BIN)/python tests/closing.py "$$folder" $(ARGS); status=$$?; rm -rf "$$folder"; exit $$status

bench: bench/.venv/.installed
	bench/.venv/bin/python -m bench $(ARGS)

bench-engine: $(VENV)/.installed
	$(BIN)/python -m bench engine $(ARGS)

bench-disk: $(VENV)/.installed
	$(BIN)/python -m bench disk $(ARGS)

viewers: $(VENV)/.installed
	$(BIN)/python -m bench viewers $(ARGS)

soak: $(VENV)/.installed
	$(BIN)/python -m bench viewers --minutes 30 --random --rest 60 $(ARGS)

first-page: $(VENV)/.installed-test
	$(BIN)/python -m bench first $(ARGS)

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" \
		|| { echo "Python could not make a virtual environment (on Debian: apt-get install python3-venv)."; exit 1; }

$(VENV)/.installed: requirements.txt constraints.txt | $(BIN)/python
	$(call install,$(PIP),-r requirements.txt -c constraints.txt)
	@touch $@

$(VENV)/.installed-test: requirements-test.txt requirements-ray.txt $(VENV)/.installed
	$(PIP) install -r requirements-test.txt -c constraints.txt
	@touch $@

bench/.venv/.installed: bench/requirements.txt bench/requirements-nnterp.txt constraints.txt
	"$(PYTHON)" -m venv bench/.venv
	$(call install,bench/.venv/bin/python -m pip --disable-pip-version-check,-r bench/requirements.txt)
	bench/.venv/bin/python -m pip --disable-pip-version-check install --no-deps --upgrade \
		--target bench/.venv/nnterp -r bench/requirements-nnterp.txt
	@touch $@

# $(1): pip, $(2): what to install.
define install
	$(1) install $(2) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
endef

# The browser tests: a Chromium of the system, else one from Debian's packages, else Playwright's own download.
chromium: $(VENV)/.installed-test
	@if [ -n "$$EXPERTSCOPE_CHROMIUM" ]; then exit 0; fi; \
	for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		if command -v $$name >/dev/null 2>&1; then exit 0; fi; \
	done; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get >/dev/null 2>&1 && $$sudo true 2>/dev/null \
		&& $$sudo apt-get update -q \
		&& $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
			chromium fonts-dejavu-core; then exit 0; fi; \
	$(BIN)/python -m playwright install chromium

clean:
	rm -rf $(VENV) bench/.venv build .pytest_cache .ruff_cache
