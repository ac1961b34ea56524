"""The layers of docs/design.md, and that importing the package costs and does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sandbox_rl"

LEVELS = (
    {"__main__", "api", "cli"},
    {"commands"},
    {"command_line", "terminal"},
    {"replay"},
    {"assistant", "runs", "view"},
    {"preflight"},
    {"builders", "model_builders"},
    {"config"},
    {"training"},
    {
        "audit",
        "build_data",
        "rollout",
        "evaluation",
        "journal",
        "ledger",
        "metrics",
        "field_metrics",
        "cassette",
    },
    {"episode", "observer"},
    {"fault_injection"},
    {"agents"},
    {"tools", "chat"},
    {"tasks", "rewards", "sandboxes", "policies", "fakes"},
    {
        "cooperate",
        "display",
        "http_client",
        "lock",
        "retries",
        "outputs",
        "processors",
        "registry",
        "settings",
        "seeds",
        "types",
        "errors",
        "__init__",
    },
)
SIBLINGS = ({"tasks", "rewards", "sandboxes", "policies"}, {"tools", "chat"})
BUILDERS = ("assistant/local", "training/", "runs/", "replay/", "preflight/", "model_builders")
"""What loads models or stands on them."""
HEAVY = {
    "torch": (*BUILDERS, "audit/", "policies/transformers", "policies/vllm/plugin"),
    "trl": ("training/",),
    "transformers": (*BUILDERS, "audit/", "policies/transformers"),
    "docker": ("sandboxes/docker",),
    "ray": ("sandboxes/ray",),
    "vllm": ("policies/vllm/plugin",),
}


def level(name: str) -> int:
    (found,) = (index for index, names in enumerate(LEVELS) if name in names)
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def part(path: Path) -> str:
    """The first component below the package: a folder or a module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_point_down(path):
    own = part(path)
    if own == "__init__":
        return  # the public face names what lies above it and loads it on demand
    for name in imports(path):
        if not name.startswith("sandbox_rl."):
            continue
        other = name.split(".")[1]
        if other == own:
            continue
        assert level(other) >= level(own), f"{path} imports {name}, which lies above it"
        for siblings in SIBLINGS:
            assert not {own, other} <= siblings, f"{path} imports {name}: siblings never import each other"


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_heavy_libraries_have_their_places(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    strangers = {user for user in users if not user.startswith(HEAVY[library])}
    assert not strangers, f"{library} is imported by {sorted(strangers)}"


COMMANDS = sorted(set((PACKAGE / "commands").glob("*.py")) - {PACKAGE / "commands" / "__init__.py"})


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.stem)
def test_commands_holds_commands(path):
    tree = ast.parse(path.read_text())
    made = {
        t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    assert "app" in made, f"{path} is no command: it has no typer app"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_importing_the_package_is_light_and_silent():
    """No torch, no output; the time is the best of three, for a machine that has other work."""
    code = "import sys, sandbox_rl; print(sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        assert run(code) == "[]\n"
        best = min(best, time.perf_counter() - started)
    bare = time.perf_counter()
    run("pass")
    bare = time.perf_counter() - bare
    assert best - bare < 0.3


def test_the_command_line_loads_nothing_heavy():
    code = (
        "import sys, sandbox_rl.cli;"
        "print(sorted({'torch', 'trl', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"


def test_a_process_that_only_rolls_out_loads_no_trainer():
    """Half of the memory and of the seconds that one takes to start; the tokenizers' library needs torch."""
    heavy = "{'trl', 'peft', 'accelerate', 'datasets', 'pandas'}"
    assert run(f"import sys, sandbox_rl.runs.rollouts; print({heavy} & set(sys.modules))") == "set()\n"


def test_importing_recipes_loads_no_torch():
    assert run("import sys, sandbox_rl.config.load; print({'torch', 'trl'} & set(sys.modules))") == "set()\n"


def test_modules_and_functions_stay_small():
    """What does not fit on a few screens is more than one thing: 300 lines a module, 60 a function."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    large = []
    for path in sorted(
        path for folder in (PACKAGE, ROOT / "scripts", ROOT / "examples") for path in folder.rglob("*.py")
    ):
        text = path.read_text()
        if text.count("\n") > 300:
            large.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, functions) and node.end_lineno - node.lineno >= 60:
                large.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert large == []
