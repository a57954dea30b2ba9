"""What is given away: a wheel works where the source tree is not, and a source distribution has every source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("py", "pyx", "pxd", "pyi", "h")


def sources(*kinds: str) -> set[str]:
    """The packages' files of these kinds, relative to the tree."""
    return {
        str(path.relative_to(ROOT))
        for package in ("actornet", "actors")
        for kind in kinds
        for path in (ROOT / package).rglob(f"*.{kind}")
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, with the extension modules that are compiled already."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    built = copy / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for name in ("actornet", "actors"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for path in (ROOT / "actornet").rglob("*.so"):
        if not path.with_name(path.name.partition(".")[0] + ".pyx").exists():
            continue  # of a module that is no more
        (built / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, built / path.relative_to(ROOT))
    return copy


def test_a_wheel_works_elsewhere(tree: Path, tmp_path: Path) -> None:
    """The NAT over a capture and its log's verification, by the installed files alone."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    made, installed = tmp_path / "made", tmp_path / "installed"
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(made), str(tree)], check=True)
    (wheel,) = made.iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources("py", "pyi", "pxd", "h") <= names
    assert not [name for name in names if name.endswith((".c", ".pyx"))]
    compiled = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == {name.removesuffix(".pyx") for name in sources("pyx")}
    subprocess.run([*pip, "install", "--no-deps", "--target", str(installed), str(wheel)], check=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import actornet, actors, actornet.engine.core as core; print(actornet.__file__, core.__file__)")
    assert all(path.startswith(str(installed)) for path in where.split())
    capture = str(ROOT / "examples/captures/skype.pcap")
    actornet = ("-m", "actornet.cli.main")
    run(*actornet, "run", "actors.nat:SourceNAT", "--read", capture, "--write", "out.pcap", "--log", "log")
    assert "log log is sound" in run(*actornet, "replay", "verify", "log")
    demo = subprocess.run(
        [sys.executable, *actornet, "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert demo.returncode == 2 and demo.stderr.startswith(
        "actornet: the demonstration's capture is in the source tree"
    )


def test_a_source_distribution_has_every_source(tree: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "setup.py", "--quiet", "sdist", "-d", str(tmp_path)]
    subprocess.run(argv, cwd=tree, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert sources(*SOURCES) <= names and {"setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".c", ".so"))]
