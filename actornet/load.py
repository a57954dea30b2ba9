"""Finding the network function that the user named."""

from __future__ import annotations

import importlib
import sys
import traceback
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from actornet.chain import Chain
from actornet.errors import ActornetError, UsageError
from actornet.flow import FlowActor


def load_nf(spec: str) -> type[FlowActor]:
    """The FlowActor class at `module:Class` or `path/file.py:Class`, or the chain of several joined by `+`.

    The file's directory, or that of its outermost package, joins `sys.path`: owners are found again by module name when
    a log is replayed. Raises UsageError if there is no such module or class, or if the module does not import.
    """
    if "+" in spec:
        return Chain(*(load_nf(part.strip()) for part in spec.split("+")))
    place, colon, name = spec.rpartition(":")
    if not colon:
        place, name = spec, ""
    is_file = place.endswith(".py") or "/" in place
    if not place or (name and not name.isidentifier()):
        raise UsageError(f"{spec!r} names no network function; write module:Class or path/file.py:Class")
    module = _import(_module_of(Path(place)) if is_file else place, place)
    if is_file and not _is_from(module, Path(place)):
        raise UsageError(
            f"{place}: {getattr(module, '__file__', 'a built-in module')} is already imported as {module.__name__!r}; "
            "rename the file"
        )
    found = getattr(module, name, None) if name else None
    if found is None:
        wanted = f"has no class {name!r}" if name else "is a module; name the class in it"
        raise UsageError(f"{place} {wanted}{_suggestion(module, place, name)}")
    if not (isinstance(found, type) and issubclass(found, FlowActor)):
        raise UsageError(f"{spec} is not a network function: it does not subclass FlowActor")
    return found


def _module_of(path: Path) -> str:
    """The dotted name of the module in a file, after making it importable."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; check the path of the network function")
    path = path.resolve()
    names, directory = [path.stem], path.parent
    while (directory / "__init__.py").is_file():
        names.insert(0, directory.name)
        directory = directory.parent
    if not path.stem.isidentifier():
        raise UsageError(f"{path.name}: the file's name must be a Python identifier with .py, to be imported")
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return ".".join(names)


def _import(module: str, place: str) -> ModuleType:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{place!r} is no module name; write module:Class or path/file.py:Class")
    try:
        return importlib.import_module(module)
    except ActornetError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(f"no module {error.name!r} (of network function {place}){_nearby(module)}") from None
        raise UsageError(f"{place} does not import: {_cause(error)}") from error


def _nearby(module: str) -> str:
    """Where the last part of the module name may have been misspelt."""
    package, _, last = module.rpartition(".")
    try:
        spec = find_spec(package) if package else None
    except ImportError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else [] if package else ["."]
    names = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
    close = get_close_matches(last, names, 1)
    if not close:
        return "; run where it can be imported, or give the path of its file"
    return f"; did you mean {package + '.' if package else ''}{close[0]}?"


def _cause(error: Exception) -> str:
    """An exception in one line, with the last place in the user's own code."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}".split()) + where


def _is_from(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path.resolve()


def _suggestion(module: ModuleType, place: str, name: str) -> str:
    names = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, FlowActor) and value.__module__ == module.__name__
    ]
    close = get_close_matches(name, names, 1)
    if close:
        return f"; did you mean {place}:{close[0]}?"
    if not names:
        return "; it defines no FlowActor"
    return f": {', '.join(f'{place}:{known}' for known in names)}"
