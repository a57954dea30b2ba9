"""Extension modules of actornet; everything else about the package is in setup.cfg.

ACTORNET_SANITIZE=1 builds them with AddressSanitizer and UndefinedBehaviorSanitizer (see `make sanitize`): as written, without
optimisation, which takes a third of the time, and hides nothing.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("ACTORNET_SANITIZE") == "1"
COMPILE_ARGS = (
    ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    if SANITIZE
    else ["-O3", "-g1"]
)
if os.environ.get("ACTORNET_NATIVE") == "1":
    COMPILE_ARGS.append("-march=native")
LINK_ARGS = ["-fsanitize=address,undefined"] if SANITIZE else []
HEADERS = [str(header) for header in sorted(Path("actornet").rglob("*.h"))]


def extension(source: Path) -> Extension:
    return Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        depends=HEADERS,
        include_dirs=["actornet/engine", "actornet/ports"],
        extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function", *COMPILE_ARGS],
        extra_link_args=LINK_ARGS,
    )


setup(
    ext_modules=cythonize(
        [extension(source) for source in sorted(Path("actornet").rglob("*.pyx"))],
        language_level=3,
        nthreads=os.cpu_count() or 1,
        compiler_directives={"embedsignature": False, "freethreading_compatible": False},
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
