"""What is refused in owner code, and what is not, with the place that the error names."""

import importlib.util
from pathlib import Path

import pytest

from actornet.errors import UsageError

HEAD = """\
import datetime as dates, random, time as clock, os, uuid, secrets, socket, threading, asyncio, collections, io, pathlib, sys
from datetime import datetime
from random import randint
from time import monotonic
from actornet.owner import Owner, Struct
GENERATOR = random.Random(1)
class Names(Struct):
    known: set[str] = set()
    used: dict[str, int] = {}
    groups: dict[str, set[str]] = {}
def helper() -> float:
    return later()
def later() -> float:
    return monotonic()
class Registry(Owner[Names]):
    def handle(self, name: str, count: int) -> list[str] | None:
"""
LINE = HEAD.count("\n") + 1


def define(directory: Path, body: str) -> None:
    file = directory / "registry.py"
    file.write_text(HEAD + "".join(f"        {line}\n" for line in body.split("\n")))
    spec = importlib.util.spec_from_file_location("registry", file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(
    ("body", "what", "instead"),
    [
        ("return clock.time()", "uses time.time", "self.now"),
        ("return monotonic()", "uses time.monotonic", "self.now"),
        ("return datetime.now()", "uses datetime.datetime.now", "self.now"),
        ("return dates.datetime.utcnow()", "uses datetime.datetime.utcnow", "self.now"),
        ("return dates.date.today()", "uses datetime.date.today", "self.now"),
        ("return random.random()", "uses random.random", "self.random"),
        ("return randint(1, 2)", "uses random.Random.randint", "self.random"),
        ("return GENERATOR.random()", "uses random.Random", "self.random"),
        ("return secrets.token_bytes(4)", "uses secrets.token_bytes", "self.random"),
        ("return uuid.uuid4()", "uses uuid.uuid4", "self.random"),
        ("return os.urandom(4)", "uses os.urandom", "self.random"),
        ("return os.environ['HOME']", "uses os.environ", "a flow actor"),
        ("open('x')", "uses open", "a flow actor"),
        ("print(name)", "uses print", "the reply"),
        ("return input()", "uses input", "a flow actor"),
        ("return socket.socket()", "uses socket.socket", "a flow actor"),
        ("return threading.Lock()", "uses threading.Lock", "a flow actor"),
        ("asyncio.sleep(1)", "uses asyncio.sleep", "a flow actor"),
        ("return id(name)", "uses id", "a key of your own"),
        ("return hash(name)", "uses hash", "the value itself"),
        ("import time", "uses time", "self.now"),
        ("from random import choice", "uses random.choice", "self.random"),
        ("for x in {name, 'b'}: pass", "takes {name, 'b'} in a set's order", "sorted()"),
        ("return [x for x in set(name)]", "takes set(name) in a set's order", "sorted()"),
        ("return list({x for x in name})", "in a set's order", "sorted()"),
        ("return [*frozenset(name)]", "takes frozenset(name) in a set's order", "sorted()"),
        ("return next(iter(self.state.known))", "takes self.state.known in a set's order", "sorted()"),
        ("return self.state.known.pop()", "takes self.state.known in a set's order", "sorted()"),
        ("return ','.join(self.state.known | {name})", "in a set's order", "sorted()"),
        ("known = set(name)\nfor x in known: pass", "takes known in a set's order", "sorted()"),
        ("return [x for x in self.state.known.union(name)]", "in a set's order", "sorted()"),
        ("self.last = name", "sets self.last, which is not replicated", "a field of self.state"),
        ("self.last: str = name", "sets self.last, which is not replicated", "a field of self.state"),
        ("global GENERATOR\nGENERATOR = 1", "changes the global GENERATOR", "a field of self.state"),
        ("return io.StringIO()", "uses io.StringIO", "a flow actor"),
        ("return pathlib.Path('x').read_text()", "uses pathlib.Path", "a flow actor"),
        ("return sys.argv", "uses sys.argv", "a flow actor"),
        ("import sqlite3", "uses sqlite3", "a flow actor"),
        ("return datetime.fromtimestamp(count)", "uses the host's time zone", "one that you name"),
        ("return [str(self.state.known)]", "takes self.state.known in a set's order", "sorted()"),
        ("return [f'{self.state.known}']", "takes self.state.known in a set's order", "sorted()"),
        ("first, *others = self.state.known", "takes self.state.known in a set's order", "sorted()"),
        ("return max(self.state.known, key=len)", "takes self.state.known in a set's order", "sorted()"),
        ("return sorted(self.state.known, key=len)", "takes self.state.known in a set's order", "sorted()"),
        ("return dict.fromkeys(self.state.known)", "takes self.state.known in a set's order", "sorted()"),
        ("return collections.deque(self.state.known)", "takes self.state.known in a set's order", "sorted()"),
        ("[].extend(self.state.known)", "takes self.state.known in a set's order", "sorted()"),
        ("for x in self.state.groups[name]: pass", "takes self.state.groups[name] in a set's order", "sorted()"),
        ("return list(self.state.groups.get(name, ()))", "in a set's order", "sorted()"),
        ("return [lambda: clock.time()]", "uses time.time", "self.now"),
    ],
)
def test_what_differs_from_run_to_run_is_refused(tmp_path: Path, body: str, what: str, instead: str) -> None:
    """G4: code that would decide differently at replay is refused where it is written."""
    with pytest.raises(UsageError) as refused:
        define(tmp_path, body)
    line = LINE + body.count("\n") * (not body.startswith("global"))
    assert str(refused.value).startswith(f"{tmp_path}/registry.py:{line}: Registry.handle ")
    assert what in str(refused.value)
    assert f"use {instead}" in str(refused.value)


def test_functions_of_the_same_module_are_followed(tmp_path: Path) -> None:
    """G4: a clock read in a function that a handler calls is found there."""
    with pytest.raises(UsageError, match=r"registry.py:14: later uses time.monotonic; .*use self.now"):
        define(tmp_path, "return helper()")


@pytest.mark.parametrize(
    "body",
    [
        "time = self.now\nreturn [str(time)]",
        "open = count\nreturn [str(open)]",
        "return sorted(set(name))",
        "return sorted(x for x in self.state.known)",
        "return [str(len({x for x in set(name)})), str(any(x == name for x in self.state.known))]",
        "known = set(name)\nknown = sorted(known)\nfor x in known: pass",
        "for x in self.state.used: pass",
        "self.state.used.pop(name)\nreturn list(self.state.used)",
        "self.state = Names()",
        "self.state.known |= {name}",
        "self.random.shuffle([1])",
        "return [str(datetime.fromtimestamp(self.now, dates.UTC))]",
        "return [str(pathlib.PurePath(name).name)]",
        "return [max(self.state.known), min(sorted(self.state.known), key=len)]",
        "self.state.groups.setdefault(name, set()).add(name)\nreturn sorted(self.state.groups[name])",
        "limit: dates.timedelta = dates.timedelta(seconds=1)",
        "return [x for x in (name if name in set('ab') else 'c')]",
    ],
)
def test_what_is_the_same_everywhere_passes(tmp_path: Path, body: str) -> None:
    define(tmp_path, body)


def test_code_without_source_passes() -> None:
    scope: dict[str, object] = {}
    exec(HEAD + "        return clock.time()\n", scope)
    assert "Registry" in scope
