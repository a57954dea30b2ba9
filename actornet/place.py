"""The place in the user's own code that an error of a handler is about."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from actornet.flow import FlowActor
from actornet.owner import owners_of

_OURS = (str(Path(__file__).parent) + "/", "actornet/engine/", "actornet/local_link")
_OTHERS = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def place_of(nf: type[FlowActor], handler: str, error: BaseException) -> str:
    """The innermost line of the user's code that the error passed, or else where the handler is defined.

    `handler` as `on_error` is given it: a flow's, or "ask owner.message".
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    if own:
        return f"{own[-1].filename}, line {own[-1].lineno}"
    for qualname, code in _definitions(nf, handler, str(error)):
        if not _is_foreign(code.co_filename):
            return f"{code.co_filename}, line {code.co_firstlineno}: {qualname}"
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "unknown place"


def place_in(frame: FrameType | None) -> str:
    """The innermost line of the user's code that runs in a thread whose innermost frame this is."""
    while frame is not None and _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}" if frame is not None else "unknown place"


def _is_foreign(filename: str) -> bool:
    """Whether it is a file of actornet, of Python or of an installed package, or none."""
    return filename.startswith(("<", *_OURS, *_OTHERS))


def _definitions(nf: type[FlowActor], handler: str, text: str) -> Iterator[tuple[str, CodeType]]:
    """Functions that the error may be about, the likeliest first."""
    functions: list[Any] = []
    if handler.startswith("ask "):
        owner, _, message = handler.removeprefix("ask ").rpartition(".")
        known = (reference.owner.messages for reference in owners_of(nf).values() if reference.name == owner)
        functions = [messages[message].function for messages in known if message in messages]
    else:
        parts = sorted(
            [nf, *getattr(nf, "chained", {}).values()], key=lambda part: not text.startswith(f"{part.__name__}.")
        )
        named = re.match(r"\w+\.(on_\w+) ", text)
        for part in parts:
            functions += [
                getattr(part, name, None) for name in (*(named.groups() if named else ()), handler, "on_data")
            ]
    for function in functions:
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if code is not None:
            yield function.__qualname__, code
