"""Joins the modules of a package into one Python file that needs nothing but the standard library.

The agent and the spawner run where this project is not installed, and must start fast.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_DROPPED = ("sandbox_rl.", "__future__", "typing", "collections.abc")


@cache
def agent_source() -> str:
    """The agent as one file; run it with the arguments of `agent.main.main`."""
    return _join("agent", ("wire", "files", "trees", "processes", "jobs", "network", "main"))


@cache
def spawner_source() -> str:
    """The spawner as one file; its only argument is the descriptor of its control socket."""
    return _join("spawner", ("system", "cgroups", "users", "stage", "live", "main"))


def _join(package: str, modules: Sequence[str]) -> str:
    """Concatenate modules in order, without the imports between them.

    Imports that only annotations need go as well: `collections.abc` alone would take a quarter of the
    agent's start.

    Raises:
        ValueError: two modules define the same top-level name.
    """
    parts = ["from __future__ import annotations\n"]
    defined: dict[str, str] = {}
    for module in modules:
        source = (_HERE / package / f"{module}.py").read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_DROPPED):
                for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[line] = "\n"
            for name in _names(node):
                if defined.setdefault(name, module) != module:
                    raise ValueError(f"{package}: {name!r} is defined in {defined[name]} and in {module}")
        parts.append("".join(lines))
    return "\n".join(parts)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return []
