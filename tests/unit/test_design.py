"""The ways that docs/design.md tells exist: every hop is a function of the file that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_HOPS = 15
BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / "design.md").read_text(), re.DOTALL | re.MULTILINE)
WAYS = [ways for block in BLOCKS if (ways := re.findall(r"^(\S+\.py):(\S+)", block, re.MULTILINE))]


def defined(path: Path) -> set[str]:
    """Functions, classes and `Class.method` of a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0][0])
def test_every_hop_of_a_way_exists(way):
    missing = [f"{path}:{name}" for path, name in way if name not in defined(ROOT / "sandbox_rl" / path)]
    assert not missing
    assert len(way) <= MOST_HOPS


def test_no_part_is_left_out():
    commands = {f"commands/{name}.py" for name in ("train", "evaluate", "run", "replay", "check", "view")}
    parts = {"rollout/engine.py", "training/trl_hooks.py", "policies/vllm/fleet.py"}
    assert {way[0][0] for way in WAYS} >= commands | parts
