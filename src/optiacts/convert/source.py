"""From the traced graphs of a method to the source of one function."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

from torch import fx

from optiacts.convert.tracing import Trace, UntraceableError, fork

_FORK = re.compile(rf"^\w+ = \w*{fork.__name__}\((?P<condition>\w+), (?P<taken>True|False)\)")


def function_source(trace: Trace) -> tuple[str, dict[str, Any]]:
    """The text of the method and the values of the names in it.

    It runs the traced ways where the guards hold, and the original method where they do not.
    """
    names: dict[str, Any] = dict(trace.names)
    bodies = []
    for graph in trace.graphs:
        lines, used = _body(graph)
        bodies.append(lines)
        names |= used
    passed = ", ".join(map(_passed_on, trace.signature.parameters.values()))
    signature = str(trace.signature)[1:-1]
    head = [f"def {trace.method}(self, {signature}):" if signature else f"def {trace.method}(self):"]
    if trace.guards:
        head += [
            f"    if not ({' and '.join(trace.guards)}):",
            f"        return original.{trace.method}(self, {passed})",
        ]
    text = "\n".join([*head, *("    " + line for line in _merged(bodies))]) + "\n"
    used_names = {name: value for name, value in names.items() if re.search(rf"\b{name}\b", text)}
    for name, value in used_names.items():
        if not _importable(value):
            raise UntraceableError(f"calls {name}, which cannot be imported")
    return text, used_names


def _passed_on(p: inspect.Parameter) -> str:
    """How a function hands its own argument on to another one of the same signature."""
    if p.kind is p.KEYWORD_ONLY:
        return f"{p.name}={p.name}"
    return ("*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else "") + p.name


def _body(graph: fx.Graph) -> tuple[list[str], dict[str, Any]]:
    """The statements of a graph, one a line, and the functions and types that they name."""
    code = graph.python_code("self")
    lines = code.src.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("def forward("))
    statements = [line.strip() for line in lines[start + 1 :] if line.strip()]
    return statements, {name: value for name, value in code.globals.items() if name != "torch"}


def _merged(bodies: list[list[str]]) -> list[str]:
    """One body that branches where the given ones part: each of them ran one way through the forks."""
    first = bodies[0]
    if len(bodies) == 1:
        return [line for line in first if not _FORK.match(line)]
    merged: list[str] = []
    for depth, line in enumerate(first):
        at_fork = _FORK.match(line)
        there = [body[depth] if depth < len(body) else "" for body in bodies]
        if at_fork and len({match["taken"] for match in map(_FORK.match, there) if match}) == 2:
            ways: dict[bool, list[list[str]]] = {True: [], False: []}
            for body in bodies:
                match = _FORK.match(body[depth])
                if match is None or match["condition"] != at_fork["condition"]:
                    break
                ways[match["taken"] == "True"].append(body[depth + 1 :])
            else:
                merged.append(f"if {at_fork['condition']}:")
                merged += ["    " + line for line in _merged(ways[True])]
                return [*merged, *_merged(ways[False])]
        if len({_statement(other) for other in there}) > 1:
            break
        if not at_fork:
            merged.append(min(there, key=len))  # a value that one way still needs must not be let go before
    raise UntraceableError("branches in ways that differ before they part")


def _statement(line: str) -> str:
    """A line without the trailing ``;  name = None`` that lets go of values."""
    return re.sub(r";  (\w+ = )+None$", "", line)


def _importable(value: Any) -> bool:
    """Whether pickle can refer to ``value`` by its name."""
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
