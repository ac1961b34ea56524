"""Things of one's own are named in a recipe by import path or by an entry point; mistakes are one line."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.errors import ConfigError
from sandbox_rl.registry import look_beside
from sandbox_rl.rewards.base import SCORERS
from sandbox_rl.sandboxes.config import BACKENDS, BackendSettings, EmbeddedSettings
from sandbox_rl.tasks.config import DataSettings, TaskSource
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.experts import EXPERTS
from sandbox_rl.types import Task

RECIPE = """\
data:
  sources:
    - {type: "own_kinds:Squares", size: 40}
sandbox:
  type: own_kinds:Nowhere
  floor: 3
"""
MODULE = """\
from sandbox_rl.sandboxes.config import BackendSettings
from sandbox_rl.tasks.config import TaskSource
from sandbox_rl.training.experts import EXPERTS
from sandbox_rl.types import Task

class Nowhere(BackendSettings):
    floor: int

class Squares(TaskSource):
    size: int = 3

    def tasks(self):
        return [Task(id=f"sq-{n}", prompt=f"{n} squared?", answer=str(n * n)) for n in range(self.size)]

class Stranger:
    pass

thing = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe and a module of one's own beside it; neither is left on the path or imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "own_kinds", None)
    del sys.modules["own_kinds"]
    (tmp_path / "own_kinds.py").write_text(MODULE)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_modules_beside_the_recipe_bring_their_own_settings(folder):
    recipe = load_recipe(folder / "r.yaml", ["sandbox.limits.memory_mb=64"])
    assert (recipe.sandbox.floor, recipe.sandbox.limits.memory_mb) == (3, 64)
    assert isinstance(recipe.sandbox, BackendSettings)
    train = load_tasks(recipe.data, split="train", base_dir=folder)
    held_out = load_tasks(recipe.data, split="held_out", base_dir=folder)
    assert {task.id for task in (*train, *held_out)} == {f"sq-{n}" for n in range(40)}
    assert {task.scorer for task in train} == {"exact"}


def test_a_recipe_that_a_run_keeps_finds_them_again(folder, monkeypatch):
    """Whatever reads it: a warm-up in a process of its own, an export, an evaluation."""
    (folder / "run").mkdir()
    recipe = load_recipe(folder / "r.yaml")
    (folder / "run" / "recipe.yaml").write_text(resolved(recipe))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    del sys.modules["own_kinds"]
    again = load_recipe(folder / "run" / "recipe.yaml")
    assert resolved(again) == resolved(recipe)
    assert type(again.sandbox).__module__ == "own_kinds"


def test_modules_can_lie_elsewhere(folder):
    (folder / "lib").mkdir()
    (folder / "own_kinds.py").rename(folder / "lib" / "own_kinds.py")
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_recipe(folder / "r.yaml")
    assert load_recipe(folder / "r.yaml", ["modules=[lib]"]).sandbox.floor == 3
    with pytest.raises(ConfigError, match="key 'modules': 'lib'"):
        load_recipe(folder / "r.yaml", ["modules=lib"])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sandbox.floors=3", "unknown key 'sandbox.floors', did you mean 'floor'?"),
        ("sandbox.floor=high", "key 'sandbox.floor': 'high'"),
        ("data.sources.0.sizes=3", "unknown key 'data.sources.0.sizes', did you mean 'size'?"),
        (
            "sandbox.type=dokcer",
            "key 'sandbox.type': sandbox backend 'dokcer' is unknown: did you mean 'docker'?",
        ),
        (
            "sandbox.type=dokcer",
            "expected one of 'embedded', 'docker', 'ray', 'recorded', or package.module:name of your own",
        ),
        ("sandbox.type=own_kinds:Somewhere", "'own_kinds:Somewhere' cannot be imported (AttributeError"),
        ("sandbox.type=no_such_module:A", "'no_such_module:A' cannot be imported (ModuleNotFoundError"),
        ("sandbox.type=own_kinds:Squares", "is Squares, expected a class derived from"),
        ("sandbox.type=own_kinds:Stranger", "is Stranger, expected a class derived from"),
        ("sandbox.type=own_kinds:thing", "is a int, expected a class derived from"),
        ("sandbox.type=3", "key 'sandbox.type': expected one of 'embedded'"),
        ("policy.type=own_kinds:Nowhere", "policy engine 'own_kinds:Nowhere' is unknown"),
    ],
)
def test_mistakes_are_one_line(folder, override, expected):
    with pytest.raises(ConfigError) as caught:
        load_recipe(folder / "r.yaml", [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_is_named_with_its_own_error(folder):
    (folder / "own_kinds.py").write_text("raise RuntimeError('first\\nsecond')\n")
    with pytest.raises(ConfigError, match=r"cannot be imported \(RuntimeError: first second\)"):
        load_recipe(folder / "r.yaml")


def test_installed_packages_add_names(folder, monkeypatch):
    entry = importlib.metadata.EntryPoint("nowhere", "own_kinds:Nowhere", BACKENDS.group)
    monkeypatch.setattr("sandbox_rl.registry.entry_points", lambda group: [entry] * (group == BACKENDS.group))
    recipe = load_recipe(folder / "r.yaml", ["sandbox.type=nowhere"])
    assert (recipe.sandbox.type, recipe.sandbox.floor) == ("nowhere", 3)
    with pytest.raises(ConfigError, match="did you mean 'nowhere'"):
        load_recipe(folder / "r.yaml", ["sandbox.type=nowere"])


class Cubes(TaskSource):
    def tasks(self):
        return [Task(id=f"cube-{n}", prompt=f"{n} cubed?", answer=str(n**3)) for n in range(3)]


def test_in_python_a_value_is_enough():
    recipe = Recipe(data=DataSettings(sources=(Cubes(),), held_out=0))
    assert recipe.data.sources[0].type == f"{__name__}:Cubes"
    assert recipe.sandbox == EmbeddedSettings()
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tools=[execute_bsh]", "tool 'execute_bsh' is unknown: did you mean 'execute_bash'?"),
        ("tools=[own_kinds:Stranger]", "tool 'own_kinds:Stranger' is Stranger, expected a Tool"),
        ("tools=[submit, submit]", "tools must have different names, got submit, submit"),
        ("tools=[]", "key 'tools': []"),
        ("chat.call_format=hermess", "call_format 'hermess' is unknown: did you mean 'hermes'?"),
        ("chat.call_format=own_kinds:thing", "is a int, expected a sandbox_rl.chat.dialects.Dialect"),
    ],
)
def test_tools_and_dialects_are_checked_as_the_recipe_is_read(folder, override, expected):
    with pytest.raises(ConfigError) as caught:
        load_recipe(folder / "r.yaml", [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("registry", "wrong", "expected"),
    [
        (SCORERS, "maths", "scorer 'maths' is unknown: did you mean 'math'? expected one of 'math', "),
        (SCORERS, "own_kinds:thing", "scorer 'own_kinds:thing' is a int, expected a function (answer, task)"),
        (EXPERTS, "arithmatic", "warmup.expert 'arithmatic' is unknown: did you mean 'arithmetic'?"),
        (EXPERTS, "own_kinds:gone", "warmup.expert 'own_kinds:gone' cannot be imported (AttributeError"),
    ],
)
def test_every_kind_has_the_same_messages(folder, registry, wrong, expected):
    look_beside(folder)
    with pytest.raises(ConfigError) as caught:
        registry.find(wrong)
    assert expected in str(caught.value)


def test_commands_do_not_see_the_packages_of_ones_own_sources_and_scorers(folder):
    """Whatever a recipe names: what makes its tasks or scores them knows the gold answers."""
    changes = ["reward.composite={'graders.math:score': 1, exact: 1}", "sandbox={type: embedded}"]
    recipe = load_recipe(folder / "r.yaml", changes)
    assert recipe.answer_packages == ("graders", "own_kinds")
    hidden = recipe.sandbox.hiding(recipe.answer_packages)
    assert isinstance(hidden, EmbeddedSettings)
    assert hidden.hidden_packages == ("graders", "own_kinds")
