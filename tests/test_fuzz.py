"""G9: no frame, however malformed, makes the engine read or write beyond it, or breaks its invariants (fuzz/)."""

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ENGINE = TESTS.parent / "actornet" / "engine"
CAPTURES = sorted((TESTS / "captures").glob("*.pcap"))
CC = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    program = tmp_path_factory.mktemp("fuzz") / "fuzz_parse"
    options = ["-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    source = TESTS / "fuzz" / "fuzz_parse.c"
    subprocess.run([CC, *options, *sanitizers, f"-I{ENGINE}", "-o", program, source], check=True)
    return program


@pytest.mark.skipif(CC is None, reason="no C compiler")
@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_frames_stay_inside_their_bounds(fuzzer, seed):
    run = subprocess.run([fuzzer, "100000", str(seed), *CAPTURES], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    counts = dict(line.split() for line in run.stdout.splitlines())
    assert all(int(count) > 500 for count in counts.values()), counts  # the fuzzer reaches every outcome
