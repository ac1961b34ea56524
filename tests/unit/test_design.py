"""The ways that docs/design.md tells are true: every hop is a function that the hop above it calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_HOPS = 15
HOP = re.compile(r"( *)(\S+\.py):(\S+)")
CALLABLE = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Hop:
    """A line of a way.

    Args:
        depth: its indentation.
        name: a function, a class, or `Class.method`.
    """

    depth: int
    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def module(self) -> str:
        """As it is imported."""
        return "sandbox_rl." + self.path.removesuffix(".py").replace("/", ".")

    @property
    def source(self) -> CALLABLE | None:
        """Where the file defines it; None where it does not."""
        body, found = parsed(self.path).body, None
        for part in self.name.split("."):
            found = next((node for node in body if isinstance(node, CALLABLE) and node.name == part), None)
            if found is None:
                return None
            body = found.body
        return found


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / "sandbox_rl" / path).read_text())


def ways() -> Iterator[list[Hop]]:
    """Each tree of calls of the page."""
    text = (ROOT / "docs" / "design.md").read_text()
    for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for tree in block.split("\n\n"):
            found = [HOP.match(line) for line in tree.splitlines()]
            if hops := [Hop(len(m[1]), m[2], m[3]) for m in found if m]:
                assert len(hops) == len(found), f"a line that is no hop in {tree}"
                yield hops


WAYS = list(ways())


def steps(way: list[Hop]) -> Iterator[tuple[Hop, Hop]]:
    """Each hop but the first, behind the one that it is indented below."""
    above: list[Hop] = []
    for hop in way:
        above = [other for other in above if other.depth < hop.depth]
        if above:
            yield above[-1], hop
        above.append(hop)


def calls(caller: Hop, called: Hop) -> bool:
    """Whether the caller's source names the function or method, or the class whose object it makes."""
    source = caller.source
    assert source is not None
    names = {node.id for node in ast.walk(source) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    first, _, method = called.name.partition(".")
    if method and (method in attributes or (caller.path, caller.name) == (called.path, first)):
        return True
    if caller.path == called.path:
        return first in names
    for node in ast.walk(parsed(caller.path)):
        if isinstance(node, ast.ImportFrom) and called.module.startswith(node.module or "-"):
            for alias in node.names:
                local = alias.asname or alias.name
                if alias.name == first and local in names:
                    return True
                if f"{node.module}.{alias.name}" == called.module and local in names and first in attributes:
                    return True
    return False


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way[0]))
def test_every_hop_of_a_way_exists_and_is_called_by_the_one_above(way):
    assert not [str(hop) for hop in way if hop.source is None]
    assert not [f"{caller} -> {called}" for caller, called in steps(way) if not calls(caller, called)]
    assert len(way) <= MOST_HOPS
    assert {hop.depth for hop in way[1:]}.isdisjoint({0})  # one tree has one beginning


def test_a_hop_that_is_not_called_is_found():
    train, engine = Hop(0, "runs/train.py", "train"), Hop(2, "rollout/engine.py", "RolloutEngine.run_groups")
    assert not calls(train, engine)
    assert not calls(train, Hop(2, "runs/train.py", "_example_of"))
    assert not calls(train, Hop(2, "training/export.py", "export_model"))
    assert Hop(0, "runs/train.py", "trains").source is None


def test_no_part_is_left_out():
    commands = {f"commands/{name}.py" for name in ("train", "evaluate", "run", "replay", "check", "view")}
    parts = {"rollout/engine.py", "training/trl_hooks.py", "policies/vllm/fleet.py"}
    assert {way[0].path for way in WAYS} >= commands | parts
