"""Determinism of owner code: it may do nothing whose result differs when the log runs again, on a backup or at replay.

The check reads the source when a class is defined, and follows calls into functions of the same module. It finds the
usual mistakes early and by name; what it cannot see, the reply hash of each record still finds at replay (G4).
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, ModuleType

from actornet.errors import UsageError

_CLOCK = "self.now"
_RANDOM = "self.random"
_OUTSIDE = "a flow actor for it, and send the owner the result"
FORBIDDEN = {
    "time": _CLOCK,
    "datetime.datetime.now": _CLOCK,
    "datetime.datetime.utcnow": _CLOCK,
    "datetime.datetime.today": _CLOCK,
    "datetime.date.today": _CLOCK,
    "random": _RANDOM,
    "secrets": _RANDOM,
    "uuid": _RANDOM,
    "os.urandom": _RANDOM,
    "posix.urandom": _RANDOM,
    "os": _OUTSIDE,
    "posix": _OUTSIDE,
    "socket": _OUTSIDE,
    "subprocess": _OUTSIDE,
    "threading": _OUTSIDE,
    "_thread": _OUTSIDE,
    "multiprocessing": _OUTSIDE,
    "asyncio": _OUTSIDE,
    **dict.fromkeys(
        (
            *(
                "_io",
                "concurrent",
                "ctypes",
                "fcntl",
                "gc",
                "getpass",
                "glob",
                "http",
                "io",
                "locale",
                "logging",
                "mmap",
            ),
            *("pathlib.Path", "pathlib.PosixPath", "platform", "queue", "resource", "sched", "select", "selectors"),
            *("shutil", "signal", "sqlite3", "ssl", "structlog", "sys", "tempfile", "urllib.request", "weakref"),
        ),
        _OUTSIDE,
    ),
    "builtins.open": _OUTSIDE,
    "builtins.input": _OUTSIDE,
    "builtins.print": "the reply: the flow actor may print it",
    "builtins.id": "a key of your own",
    "builtins.hash": "the value itself as the key",
}
"""Name -> what to use instead; a module's or class's name stands for everything in it."""

_TEXTS = {f"builtins.{name}" for name in ("str", "repr", "ascii", "format")}
_HOST_TIME = {"datetime.datetime.fromtimestamp", "datetime.date.fromtimestamp"}
"""Without a zone, by that of the host."""

_SETS = {"builtins.set", "builtins.frozenset"}
_KEEPS_ORDER = {f"builtins.{name}" for name in ("list", "tuple", "iter", "enumerate", "zip", "map", "filter")}
_KEEPS_ORDER |= {"collections.deque", "builtins.dict.fromkeys"}
_BREAKS_TIES = {f"builtins.{name}" for name in ("sorted", "min", "max")}
"""By a `key`; what is equal by that stays in the order in which it came."""
_IGNORES_ORDER = _SETS | {f"builtins.{name}" for name in ("sorted", "any", "all", "len", "sum", "min", "max")}
_SET_METHODS = {"union", "intersection", "difference", "symmetric_difference", "copy"}


def check(
    function: FunctionType, name: str, set_fields: frozenset[str], fields_of_sets: frozenset[str] = frozenset()
) -> None:
    """Raise UsageError, with file and line, if the function or one of its module that it calls is not deterministic.

    `name` is what the error calls it; `set_fields` are the fields of `self.state` that are sets, `fields_of_sets` those whose
    values are. A function without source (defined in an interactive session) passes.
    """
    todo, seen = [(function, name)], {function}
    while todo:
        function, name = todo.pop()
        source = _parse(function)
        if source is None:
            continue
        scan = _Scan(function, name, set_fields, fields_of_sets, source)
        scan.run()
        for called in scan.called:
            if called not in seen:
                seen.add(called)
                todo.append((called, called.__qualname__))


def _parse(function: FunctionType) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    return next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)


class _Scan(ast.NodeVisitor):
    """One function's walk. `called` collects functions of the same module that it names."""

    def __init__(
        self,
        function: FunctionType,
        name: str,
        set_fields: frozenset[str],
        fields_of_sets: frozenset[str],
        tree: ast.FunctionDef,
    ) -> None:
        self.called: list[FunctionType] = []
        self._function = function
        self._name = name
        self._set_fields = set_fields
        self._fields_of_sets = fields_of_sets
        self._tree = tree
        self._outer = dict(_closure(function))
        self._locals = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_stored(node)}
        self._locals |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        self._sets: set[str] = set()
        self._unordered: list[ast.expr] = []

    def run(self) -> None:
        for node in [*self._tree.args.defaults, *filter(None, self._tree.args.kw_defaults), *self._tree.body]:
            self.visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._check_name(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if _is_stored(node) and isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr != "state":
            self._fail(node, f"sets self.{node.attr}, which is not replicated", "a field of self.state")
        if not self._check_name(node):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self._remember_set(node.target, node.value)
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._remember_set(target, node.value)
            if isinstance(target, ast.Tuple | ast.List):
                self._check_order(node.value)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self._fail(node, f"changes the global {node.names[0]}, which is not replicated", "a field of self.state")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._forbid(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._forbid(node, f"{node.module}.{alias.name}")

    def visit_For(self, node: ast.For) -> None:
        self._check_order(node.iter)
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._check_generators(node.generators)
        self.generic_visit(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._check_generators(node.generators)
        self.generic_visit(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        if node not in self._unordered:
            self._check_generators(node.generators)
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._check_order(node.value)
        self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        self._check_order(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        target = self._qualified(node.func)
        if target in _HOST_TIME and len(node.args) + len(node.keywords) < 2:
            self._fail(node, "uses the host's time zone", "one that you name, such as datetime.UTC")
        if target in _TEXTS or (target in _BREAKS_TIES and any(word.arg == "key" for word in node.keywords)):
            for argument in node.args:
                self._check_order(argument)
        if target in _IGNORES_ORDER:
            self._unordered.extend(node.args)
        elif target in _KEEPS_ORDER or (isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "extend")):
            for argument in node.args:
                self._check_order(argument)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "pop" and not node.args:
            self._check_order(node.func.value)
        self.generic_visit(node)

    def _check_generators(self, generators: list[ast.comprehension]) -> None:
        for generator in generators:
            self._check_order(generator.iter)

    def _check_order(self, node: ast.expr) -> None:
        if self._is_set(node):
            self._fail(node, f"takes {ast.unparse(node)} in a set's order, which varies", "sorted()")

    def _is_set(self, node: ast.expr) -> bool:
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Name(id=name):
                return name in self._sets
            case ast.BinOp(left=left, right=right, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
                return self._is_set(left) or self._is_set(right)
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in _SET_METHODS:
                return self._is_set(value)
            case ast.Subscript(value=value) | ast.Call(func=ast.Attribute(value=value, attr="get" | "setdefault")):
                return self._holds_sets(value)
            case ast.Call(func=function):
                return self._qualified(function) in _SETS
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id=name), attr="state"), attr=field):
                return name == "self" and field in self._set_fields
        return False

    def _holds_sets(self, node: ast.expr) -> bool:
        """Whether it is a field of `self.state` whose values are sets."""
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr="state"), attr=field):
                return field in self._fields_of_sets
        return False

    def _remember_set(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            (self._sets.add if self._is_set(value) else self._sets.discard)(target.id)

    def _check_name(self, node: ast.expr) -> bool:
        """Whether the expression is a name or dotted name from outside the function; forbidden ones fail."""
        qualified = self._qualified(node)
        if qualified is None:
            return False
        self._forbid(node, qualified)
        called = self._resolve(node)
        if isinstance(called, FunctionType) and called.__module__ == self._function.__module__:
            self.called.append(called)
        return True

    def _resolve(self, node: ast.expr) -> object | None:
        """The object behind a name or dotted name from outside the function; only modules and classes are entered."""
        match node:
            case ast.Name(id=name) if name not in self._locals:
                module = self._function.__globals__
                return self._outer.get(name, module.get(name, getattr(builtins, name, None)))
            case ast.Attribute(value=value, attr=attr):
                base = self._resolve(value)
                return inspect.getattr_static(base, attr, None) if isinstance(base, ModuleType | type) else None
        return None

    def _qualified(self, node: ast.expr) -> str | None:
        """Where the named object really lives, whatever it was imported as: `datetime.datetime.now`."""
        if isinstance(node, ast.Attribute):
            base = self._resolve(node.value)
            return f"{_home(base)}.{node.attr}" if isinstance(base, ModuleType | type) else None
        found = self._resolve(node)
        return None if found is None else _home(found)

    def _forbid(self, node: ast.AST, qualified: str) -> None:
        for prefix in _prefixes(qualified):
            if prefix in FORBIDDEN:
                self._fail(node, f"uses {qualified.removeprefix('builtins.')}", FORBIDDEN[prefix])

    def _fail(self, node: ast.AST, what: str, instead: str) -> None:
        line = getattr(node, "lineno", self._function.__code__.co_firstlineno)
        raise UsageError(
            f"{self._function.__code__.co_filename}:{line}: {self._name} {what}; "
            f"an owner must decide the same on the backup and at replay: use {instead}"
        )


def _closure(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # `__class__`, while the class is being defined
            yield name, cell.cell_contents


def _is_stored(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def _home(found: object) -> str:
    if isinstance(found, ModuleType):
        return found.__name__
    name: str = getattr(found, "__qualname__", type(found).__qualname__)
    if getattr(builtins, name, None) is found:
        return f"builtins.{name}"
    bound = getattr(found, "__self__", None)
    module: str | None = getattr(found, "__module__", None)
    if module is None:
        module = bound.__name__ if isinstance(bound, ModuleType) else type(bound).__module__
    return f"{module}.{name}"


def _prefixes(qualified: str) -> Iterator[str]:
    """The name itself, then each module or class that holds it."""
    while qualified:
        yield qualified
        qualified = qualified.rpartition(".")[0]
