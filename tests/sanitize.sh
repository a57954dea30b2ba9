#!/usr/bin/env bash
# Builds the compiled modules with AddressSanitizer and UndefinedBehaviorSanitizer in a directory of its own, and runs the
# tests of the compiled parts on them. PYTHON names an interpreter that has the test dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -cf - | tar -C "$work" -xf -
cd "$work"
ACTORNET_SANITIZE=1 "$python" setup.py --quiet build_ext --inplace > build.log 2>&1 || { tail -40 build.log; exit 1; }
# Python itself leaks by design and pymalloc hides overflows from the sanitizer.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export PYTHONPATH="$work"
exec "$python" -m pytest -p no:cacheprovider --numprocesses=auto \
  tests/test_flow_state.py tests/test_restored.py tests/test_record.py tests/test_replica.py tests/test_exactly_once.py tests/test_divergence.py tests/test_snapshot.py \
  tests/test_core.py tests/test_asks.py tests/test_core_system.py tests/test_wire.py tests/test_tunnels.py tests/test_flow_table.py tests/test_ring.py \
  tests/test_memory_port.py tests/test_playback.py tests/test_fuzz_core.py tests/test_flows.py tests/test_held.py tests/test_stations.py \
  tests/test_suspension.py tests/test_neighbors.py tests/test_routes.py tests/test_log_syncer.py tests/test_senders.py tests/test_handoff.py tests/test_fragments.py tests/test_rss.py tests/test_offload.py \
  tests/test_af_packet.py tests/test_af_xdp.py tests/test_tap.py \
  tests/test_reassembly.py tests/test_stream.py tests/test_chain.py tests/test_datagram.py
