"""What `import sandbox_rl` gives: the same names for people, type checkers and the documentation."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox_rl

ROOT = Path(__file__).parents[2]


def test_the_page_lists_exactly_the_public_names():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^- `(\w+)", page, flags=re.MULTILINE)) == sorted(sandbox_rl.__all__)


def test_examples_and_pages_use_public_names_only():
    pages = [*(ROOT / "examples").glob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    private = [path.name for path in pages if re.search(r"(from|import) sandbox_rl\.", path.read_text())]
    assert not private


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(sandbox_rl.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == sandbox_rl.__all__
    for name, module in seen.items():
        assert getattr(sandbox_rl, name) is getattr(sys.modules[module], name)


@pytest.mark.parametrize("name", sandbox_rl.__all__)
def test_every_public_thing_says_what_it_is(name):
    thing = getattr(sandbox_rl, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing), f"{name} has no docstring"
        assert not (inspect.getdoc(thing) or "").startswith(f"{name}("), f"{name} has only a generated one"


def test_names_are_loaded_when_they_are_used_and_torch_only_with_a_model():
    code = (
        "import sys, sandbox_rl\n"
        "light = len([m for m in sys.modules if m.startswith('sandbox_rl.')])\n"
        "from sandbox_rl import Recipe, Task, load_recipe, open_sandbox, train, evaluate, make_toolbox\n"
        "print(light, callable(train), 'torch' in sys.modules, 'Task' in dir(sandbox_rl))\n"
        "import sandbox_rl.api; print(sandbox_rl.train is sandbox_rl.api.train)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["0 True False True", "True"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Tsk'"):
        _ = sandbox_rl.Tsk  # type: ignore[attr-defined]
