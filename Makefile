# actornet: `make demo` shows the main job, `make test` passes the tests; both set up what they need and can be repeated.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Programs that only tests, benchmarks or the demonstration use: the command, and Debian's package of it.
PACKAGES := iperf3:iperf3 curl:curl nft:nftables redis-server:redis-server etcd:etcd-server spin:spin keepalived:keepalived conntrackd:conntrackd

.PHONY: demo test check build packages sanitize bench clean

demo: build
	$(BIN)/actornet demo

test: build packages check
	$(BIN)/python -m pytest

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# NFStream is heavy, and for bench.capture alone.
bench: build packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nfstream
	$(BIN)/python -m bench.nat
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

build: $(VENV)/ready
	@$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }

$(VENV)/ready: setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "actornet needs Python 3.11 or newer; name one by: make PYTHON=python3.x"; exit 1; }
	@command -v cc > /dev/null || { echo "actornet needs a C compiler: apt-get install gcc"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "setuptools>=65" wheel "Cython>=3.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[test,bench]"
	@touch $@

packages:
	@missing=""; for pair in $(PACKAGES); do \
	  command -v $${pair%%:*} > /dev/null 2>&1 || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    echo "installing$$missing"; apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends$$missing > /dev/null; \
	  else echo "not installed:$$missing (tests that use them are skipped and say so)"; fi; fi

clean:
	rm -rf $(VENV) build *.egg-info demo-output
	find actornet -name '*.so' -delete
	find actornet -name '*.c' -delete
