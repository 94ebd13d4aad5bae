"""The source of a function, if it is provably what runs, and new functions made from edited source.

A function is found in its file by name and first line. It counts only if the *unmodified* text compiles to the very
code that runs; an edited file, an import hook or an instrumented function does not. An edited copy is compiled where
the function stands, so that ``super()``, private names and closures mean what they meant, and gets the function's
own globals, closure cells and defaults. Helpers reach it as further closure cells: nothing of the user's is written
to.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import linecache
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optiacts.conversion.syntax import walk, walked

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Position = tuple[int, int, int, int]  # line and column of an expression's start and end: its name in every parse

_SCOPE = "_optiacts_scope"
_BODY = "_optiacts_body"  # the function's own name would be the scope's, where it may mean a global to the function
_FUTURE = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0
)


class UnseenError(Exception):
    """Why the source of a function cannot be relied on."""


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement of a file's own scope, and what it compiles to there."""

    filename: str
    lines: tuple[str, ...]
    first_line: int
    tree: ast.stmt
    imports: tuple[ast.stmt, ...]  # of the file: compilers treat names that it imports in their own way

    def compile(self, body: list[ast.stmt], flags: int) -> types.CodeType:
        """The code of ``body`` in the place of this statement."""
        module = ast.Module([*self.imports, *body], [])
        return compile(module, self.filename, "exec", flags=flags & _FUTURE, dont_inherit=True)

    @functools.cached_property
    def functions(self) -> list[Function]:
        return [node for node in walked(self.tree) if isinstance(node, Function)]

    @functools.lru_cache(maxsize=8)  # noqa: B019 - statements live as long as their file is cached
    def codes(self, flags: int) -> dict[tuple[str, int], list[types.CodeType]]:
        """All code objects in the statement, by name and first line."""
        found: dict[tuple[str, int], list[types.CodeType]] = {}
        for code in _codes(self.compile([self.tree], flags)):
            found.setdefault(_place(code), []).append(code)
        return found


@dataclass(frozen=True, eq=False)
class Source:
    """A function's syntax tree, and the statement that contains it."""

    statement: Statement
    node: Function

    @functools.cached_property
    def calls(self) -> tuple[ast.Call, ...]:
        """Every call in the function."""
        return tuple(node for node in walk(self.node) if isinstance(node, ast.Call))

    @functools.cached_property
    def bound(self) -> frozenset[str]:
        """Every name that the function, or one inside it, binds."""
        return frozenset(_bound_names(self.node))

    @functools.cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Names that the function itself imports: the module and the name in it."""
        found: dict[str, tuple[str, str]] = {}
        for node in walk(self.node):
            if isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                found |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.asname: (alias.name, "") for alias in node.names if alias.asname}
                found |= {n: (n, "") for a in node.names if not a.asname for n in [a.name.partition(".")[0]]}
        return found

    @functools.cached_property
    def assigned(self) -> tuple[tuple[str, ast.expr], ...]:
        """Names with the expressions that they, or elements of them, are bound to."""
        return tuple(_assignments(self.node))


def position(node: ast.expr | ast.stmt) -> Position:
    """The name of ``node`` in every parse of its file."""
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0


def replaced(node: ast.expr, at: Position, name: str) -> ast.expr:
    """A copy of ``node`` with a variable in place of the expression at a position."""

    class Replace(ast.NodeTransformer):
        def visit(self, inner: ast.AST) -> Any:
            if isinstance(inner, ast.expr) and position(inner) == at:
                return ast.copy_location(ast.Name(name, ast.Load()), inner)
            return self.generic_visit(inner)

    changed: ast.expr = Replace().visit(copy.deepcopy(node))
    return changed


# by code and file: equal code may stand in several files
_known: weakref.WeakKeyDictionary[types.CodeType, dict[str, Source | str]] = weakref.WeakKeyDictionary()


def source_of(function: types.FunctionType) -> Source:
    """The source that ``function`` runs; ``UnseenError`` says why it is not to be had."""
    code = function.__code__
    known = _known.setdefault(code, {})
    found = known.get(code.co_filename)
    if found is None:
        try:
            found = _find(function)
        except UnseenError as error:
            found = str(error)
        known[code.co_filename] = found
    if isinstance(found, str):
        raise UnseenError(found)
    return found


def rebuilt(
    function: types.FunctionType, edit: Callable[[Function], None], helpers: Mapping[str, Any]
) -> types.FunctionType:
    """``function`` with its tree changed by ``edit``, in which the names of ``helpers`` mean their values."""
    source, code = source_of(function), function.__code__
    statement = source.statement
    tree = ast.parse("\n" * (statement.first_line - 1) + "".join(statement.lines))
    wrap = _Wrap(position(source.node), edit, tuple(helpers))
    compiled = statement.compile(ast.fix_missing_locations(wrap.visit(tree)).body, code.co_flags)
    scope = next(inner for inner in _codes(compiled) if inner.co_varnames[: len(helpers)] == tuple(helpers))
    name = code.co_name if isinstance(source.node, ast.Lambda) else _BODY
    new = next(inner for inner in _codes(scope) if _place(inner) == (name, code.co_firstlineno))
    new = new.replace(co_name=code.co_name)
    if sys.version_info >= (3, 11):
        new = new.replace(co_qualname=code.co_qualname)
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in helpers.items()}
    closure = tuple(cells[name] for name in new.co_freevars)
    made = types.FunctionType(new, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__doc__, made.__module__, made.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    made.__dict__.update(function.__dict__)
    return made


def _find(function: types.FunctionType) -> Source:
    lines = linecache.getlines(function.__code__.co_filename, function.__globals__)
    try:
        return _found_in(lines, function)
    except UnseenError:
        linecache.checkcache(function.__code__.co_filename)  # the file may have been written and imported anew
        now = linecache.getlines(function.__code__.co_filename, function.__globals__)
        if now == lines:
            raise
        return _found_in(now, function)


def _found_in(lines: list[str], function: types.FunctionType) -> Source:
    code = function.__code__
    if not lines:
        raise UnseenError("its source is not available")
    try:
        statement = _statement_at(code.co_filename, tuple(lines), code.co_firstlineno)
        codes = statement.codes(code.co_flags & _FUTURE).get(_place(code), [])
    except (SyntaxError, ValueError) as error:
        raise UnseenError("the source on disk is not what runs") from error
    if code not in codes:
        raise UnseenError("the source on disk is not what runs")
    nodes = [node for node in statement.functions if _stands_at(node, code)]
    if len(nodes) > 1:
        nodes = _smallest_around(nodes, code)
    if len(nodes) != 1:
        raise UnseenError("several functions stand on its line")
    return Source(statement, nodes[0])


def _statement_at(name: str, lines: tuple[str, ...], line: int) -> Statement:
    """The top-level statement that contains ``line``."""
    for first, statement in _statements(name, lines):
        if first <= line <= (statement.tree.end_lineno or 0):
            return statement
    raise UnseenError("the source on disk is not what runs")


@functools.lru_cache(maxsize=256)
def _statements(name: str, lines: tuple[str, ...]) -> list[tuple[int, Statement]]:
    body = ast.parse("".join(lines)).body
    imports = tuple(_imports(body))
    found = []
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        found.append((first, Statement(name, lines[first - 1 : node.end_lineno], first, node, imports)))
    return found


def _imports(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The imports of a module's own scope."""
    for statement in body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            if getattr(statement, "module", "") != "__future__":
                yield statement
        elif not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for name in ("body", "handlers", "orelse", "finalbody"):
                yield from _imports(getattr(statement, name, []))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """All code objects within ``code``."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _place(code: types.CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def _stands_at(node: Function, code: types.CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return (code.co_name, code.co_firstlineno) == ("<lambda>", node.lineno)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (code.co_name, code.co_firstlineno) == (node.name, first)


def _smallest_around(nodes: list[Function], code: types.CodeType) -> list[Function]:
    """Of several functions on one line the innermost one that all instructions of ``code`` lie in."""
    if sys.version_info < (3, 11):
        return []
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if line and end_line and column is not None and end_column is not None and end_column > 0
    ]
    around = [
        node
        for node in nodes
        if all(
            (node.lineno, node.col_offset) <= start and end <= (node.end_lineno or 0, node.end_col_offset or 0)
            for start, end in spans
        )
    ]
    return sorted(around, key=lambda node: (node.end_col_offset or 0) - node.col_offset)[:1]


class _Wrap(ast.NodeTransformer):
    """Edits one function and puts it into a scope that provides the helpers as free variables."""

    def __init__(self, at: Position, edit: Callable[[Function], None], helpers: tuple[str, ...]) -> None:
        self._at, self._edit = at, edit
        arguments = [ast.arg(name) for name in helpers]
        self._arguments = ast.arguments([], arguments, None, [], [], None, [])

    def _visit_def(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Any:
        if position(node) != self._at:
            return self.generic_visit(node)
        self._edit(node)
        binds = ast.Assign([ast.Name(node.name, ast.Store())], ast.Constant(None))  # as the def did, around it
        node.name = _BODY
        scope = ast.FunctionDef(_SCOPE, self._arguments, [node], [], None)
        if sys.version_info >= (3, 12):
            scope.type_params = []
        return [ast.copy_location(scope, node), ast.copy_location(binds, node)]

    visit_FunctionDef = _visit_def  # noqa: N815
    visit_AsyncFunctionDef = _visit_def  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        if position(node) != self._at:
            return self.generic_visit(node)  # type: ignore[return-value]
        self._edit(node)
        return ast.copy_location(ast.Lambda(self._arguments, node), node)


def _bound_names(function: ast.AST) -> Iterator[str]:
    """Every name that the function, or one inside it, binds."""
    declared = {n for node in walk(function) if isinstance(node, ast.Global) for n in node.names}
    for node in walk(function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and node.id not in declared:
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node is not function:
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif (isinstance(node, ast.ExceptHandler) and node.name) or (
            isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name
        ):
            yield node.name


def _assignments(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names with the expressions that they are bound to, or to an element of."""
    for node in walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _paired(target, node.value)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            yield from _paired(node.target, node.value)
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            yield from _paired(node.target, node.iter)


def _paired(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, (ast.Tuple, ast.List)):
        same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
        for number, element in enumerate(target.elts):
            yield from _paired(element, value.elts[number] if same else value)  # type: ignore[attr-defined]
