# actornet: `make demo` shows the main job, `make test` passes the tests; both set up what they need and can be repeated.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Programs that only tests, benchmarks or the demonstration use: the command, and Debian's package of it.
PACKAGES := iperf3:iperf3 curl:curl nft:nftables redis-server:redis-server etcd:etcd-server openssl:openssl spin:spin keepalived:keepalived conntrackd:conntrackd

# Tests that calculate, and touch neither clock nor network: they run side by side, before all others.
CALCULATING := $(patsubst %,tests/test_%.py,simulate protocol_simulation fuzz fuzz_core model nat_model nat store \
  stream reassembly chain replica exactly_once divergence snapshot restored record rss wire neighbors moves firewall load_balancer)

# Where `$$missing` has packages of Debian's: install them, or fail, which says nothing yet.
INSTALL := [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && echo "installing$$missing" && apt-get -qq update && \
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends$$missing > /dev/null

.PHONY: demo test check build tools packages sanitize fuzz bench clean

demo: build
	$(BIN)/actornet demo

test: build packages check
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal $(CALCULATING)
	$(BIN)/python -m pytest $(CALCULATING:%=--ignore=%)

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# NFStream is heavy, and for bench.capture alone.
bench: build packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nfstream
	$(BIN)/python -m bench.nat
	$(BIN)/python -m bench.calls
	$(BIN)/python -m bench.capture
	$(BIN)/python -m bench.offload
	$(BIN)/python -m bench.chain
	$(BIN)/python -m bench.cores
	$(BIN)/python -m bench.opens
	$(BIN)/python -m bench.owner
	$(BIN)/python -m bench.failover
	$(BIN)/python -m bench.failover_peers
	$(BIN)/python -m bench.replication
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.forward
	$(BIN)/python -m bench.receive

# The compiled core under AddressSanitizer and UndefinedBehaviorSanitizer, built in a directory of its own.
sanitize: build
	PYTHON=$(abspath $(BIN)/python) tests/sanitize.sh

# The fuzzers of `make test` on fifty times as many inputs: ten million frames, a million that are cut into segments, 50,000
# captures, and 1.4 million packets through whole cores. Some ten minutes.
fuzz: build
	FUZZ_TIMES=50 FUZZ_PACKETS=200000 $(BIN)/python -m pytest tests/test_fuzz.py tests/test_fuzz_core.py tests/test_pcap.py -k "bounds or hostile or mutated"

build: $(VENV)/ready
	@$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }

$(VENV)/ready: setup.cfg setup.py pyproject.toml | tools
	@echo "setting up $(VENV) and the compiled core: a minute or two, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "setuptools>=65" wheel "Cython>=3.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[test,bench]"
	@touch $@

# What it takes to build, and, for root, to make network namespaces.
tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "actornet needs Python 3.11 or newer; name one by: make PYTHON=python3.x"; exit 1; }
	@missing=""; \
	command -v cc > /dev/null || missing="$$missing gcc libc6-dev"; \
	$(PYTHON) -c 'import ensurepip' 2> /dev/null || missing="$$missing $(notdir $(PYTHON))-venv"; \
	[ -f "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing="$$missing $(notdir $(PYTHON))-dev"; \
	[ "$$(id -u)" != 0 ] || command -v ip > /dev/null || missing="$$missing iproute2"; \
	[ -z "$$missing" ] || { $(INSTALL); } || { echo "actornet needs$$missing: apt-get install$$missing"; exit 1; }

packages:
	@missing=""; for pair in $(PACKAGES); do \
	  command -v $${pair%%:*} > /dev/null 2>&1 || missing="$$missing $${pair##*:}"; done; \
	[ -z "$$missing" ] || { $(INSTALL); } || echo "not installed:$$missing (tests that use them are skipped and say so)"

clean:
	rm -rf $(VENV) build *.egg-info demo-output
	find actornet -name '*.so' -delete
	find actornet -name '*.c' -delete
