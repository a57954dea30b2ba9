"""Settings of a network function: values that the operator may override by `--set name=value` or in the deployment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, TypeVar, cast

from actornet.errors import UsageError

Value = int | float | bool | str | list[str]
"""What a setting can be; its type is its default's type."""

T = TypeVar("T", bound=Value)

_TYPE_NAMES: dict[type, str] = {int: "int", float: "float", bool: "bool", str: "str", list: "list of str"}
_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Setting:
    """A declared setting: its name, default and one line of documentation.

    Read on an instance it is the default, until `assign` gives the class a value; read on the class it is the
    declaration.
    """

    def __init__(
        self,
        default: Value,
        doc: str = "",
        check: Callable[[Any], object] | None = None,
        least: float | None = None,
        most: float | None = None,
    ) -> None:
        if type(default) not in _TYPE_NAMES or (type(default) is list and not _all_text(default)):
            types = ", ".join(_TYPE_NAMES.values())
            raise UsageError(f"setting({default!r}): a setting's default is one of {types}")
        self.name = ""
        self.default = default
        self.doc = doc
        self.check = check
        self.least = least
        self.most = most
        if (least is not None or most is not None) and type(default) not in (int, float):
            raise UsageError(f"setting({default!r}): least and most are for numbers")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else self.default

    def __repr__(self) -> str:
        return f"setting({self.default!r}, {self.doc!r})"

    def renamed(self, name: str) -> Setting:
        """The same declaration under another name."""
        other = Setting(self.default, self.doc, self.check, self.least, self.most)
        other.name = name
        return other

    @property
    def type_name(self) -> str:
        """The type in words, as error messages and help show it."""
        return _TYPE_NAMES[type(self.default)]

    def parse(self, given: object) -> Value:
        """The value in a text from the command line, or a value of the right type from a file; lists are `a,b,c`."""
        expected = type(self.default)
        value: object = given
        if isinstance(given, str):
            value = self._parse_text(given.strip())
        elif expected is float and type(given) is int:
            value = float(given)
        elif type(given) is not expected or (isinstance(given, list) and not _all_text(given)):
            value = None
        if value is None or (isinstance(value, float) and not isfinite(value)):
            raise UsageError(f"setting {self.name!r} must be {self.type_name}, not {given!r}")
        if isinstance(value, int | float) and not self._within(value):
            raise UsageError(f"setting {self.name!r} must be {self._range()}, not {given!r}")
        if self.check is not None:
            try:
                self.check(value)
            except ValueError as error:
                raise UsageError(f"setting {self.name!r}: {error}") from None
        return cast(Value, value)

    def _within(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def _range(self) -> str:
        if self.least is None:
            return f"{self.most:.12g} or less"
        return f"{self.least:.12g} or more" if self.most is None else f"{self.least:.12g} to {self.most:.12g}"

    def _parse_text(self, text: str) -> Value | None:
        if isinstance(self.default, bool):
            return _BOOLS.get(text.lower())
        if isinstance(self.default, str):
            return text
        if isinstance(self.default, list):
            return [part.strip() for part in text.split(",")] if text else []
        try:
            return type(self.default)(text)
        except ValueError:
            return None


def setting(
    default: T,
    doc: str = "",
    check: Callable[[T], object] | None = None,
    *,
    least: float | None = None,
    most: float | None = None,
) -> T:
    """Declare a setting of a network function: `address = setting("203.0.113.1", "external address")`.

    The default is an int, float, bool, str or list of str, and gives the setting its type. A value that is given in its place
    is `least` at least and `most` at most, if it is a number, and `check`, called with it, raises ValueError if it will not
    do: the function then does not start.
    """
    return cast(T, Setting(default, doc, check, least, most))


def settings_of(function: type) -> dict[str, Setting]:
    """The settings that a network function's class and its bases declare, by name; of a chain, those of its members as
    `Member.name`."""
    found: dict[str, Setting] = {}
    for base in reversed(function.__mro__):
        declared: dict[str, Setting] = base.__dict__.get("_settings_declared", {})
        attributes = {name: value for name, value in vars(base).items() if isinstance(value, Setting)}
        found.update(declared)
        found.update(attributes)
    for label, part in _chained(function).items():
        for name, declaration in settings_of(part).items():
            found[f"{label}.{name}"] = declaration.renamed(f"{label}.{name}")
    return found


def resolve(function: type, overrides: Mapping[str, object]) -> dict[str, Value]:
    """The value of each setting of the class: the override if there is one, else the default.

    In a chain, a name without a member's is that of all members which have such a setting, but for those that are named.
    Raises UsageError that names the setting and its type.
    """
    settings = settings_of(function)
    for label in _chained(function):
        everyone = {f"{label}.{name}": value for name, value in overrides.items() if f"{label}.{name}" in settings}
        overrides = everyone | dict(overrides)
    shared = {name.partition(".")[2] for name in settings}
    for name in overrides:
        if name not in settings and name not in shared:
            known = ", ".join(sorted(settings)) or "none"
            raise UsageError(f"{function.__name__} has no setting {name!r}; its settings are: {known}")
    return {
        name: declared.parse(overrides[name]) if name in overrides else declared.default
        for name, declared in settings.items()
    }


def assign(function: type, values: Mapping[str, Value]) -> None:
    """Make resolved values those that instances of the class read; as plain class attributes, so reading is free."""
    chained = _chained(function)
    for part in chained.values():
        type.__setattr__(part, "_settings_declared", settings_of(part))
    type.__setattr__(function, "_settings_declared", settings_of(function))
    for name, value in values.items():
        label, dot, attribute = name.rpartition(".")
        type.__setattr__(chained[label] if dot else function, attribute, value)


def _chained(function: type) -> Mapping[str, type]:
    """The members of a chain by label, see `actornet.chain`; nothing for any other function."""
    members: Mapping[str, type] = getattr(function, "chained", {})
    return members


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
