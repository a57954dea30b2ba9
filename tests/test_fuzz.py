"""G9: no frame, however malformed, makes the engine read or write beyond it, or breaks its invariants (fuzz/)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ENGINE = TESTS.parent / "actornet" / "engine"
CAPTURES = sorted((TESTS / "captures").glob("*.pcap"))
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # `make fuzz`: as many inputs times so many
CC = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return compiled("fuzz_parse", tmp_path_factory)


def compiled(name, tmp_path_factory):
    program = tmp_path_factory.mktemp("fuzz") / name
    options = ["-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    includes = [f"-I{ENGINE}", f"-I{ENGINE.with_name('ports')}"]
    source = TESTS / "fuzz" / f"{name}.c"
    subprocess.run([CC, *options, *sanitizers, *includes, "-o", program, source], check=True)
    return program


@pytest.mark.skipif(CC is None, reason="no C compiler")
@pytest.mark.parametrize("seed", [1, 2])
def test_mutated_frames_stay_inside_their_bounds(fuzzer, seed):
    run = subprocess.run(
        [fuzzer, str(100_000 * TIMES), str(seed), *CAPTURES], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    counts = dict(line.split() for line in run.stdout.splitlines())
    assert all(int(count) > 500 for count in counts.values()), counts  # the fuzzer reaches every outcome


@pytest.mark.skipif(CC is None, reason="no C compiler")
def test_frames_are_cut_and_completed_inside_their_bounds(tmp_path_factory):
    """Segments of sound frames add up, too."""
    fuzzer = compiled("fuzz_gso", tmp_path_factory)
    run = subprocess.run([fuzzer, str(20_000 * TIMES), "1"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    counts = dict(line.split() for line in run.stdout.splitlines())
    assert all(int(count) > 500 for count in counts.values()), counts
