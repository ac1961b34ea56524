"""A recipe that comes along is named without its file, from any directory and from an installed wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sandbox_rl.assistant.settings import load_assistant
from sandbox_rl.command_line import open_recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.runs.subjects import Subject

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


@pytest.mark.parametrize("name", ["quickstart", "llm-in-sandbox/qwen3-4b"])
def test_a_recipe_of_the_package_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, base = open_recipe(Path(name), ["seed=7"])
    assert recipe.seed == 7
    assert base == (ROOT / "recipes" / name).parent


def test_every_command_takes_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Subject.open("quickstart", ["data.sources.0.size=50"]).settings.name == "quickstart"
    assert Subject.open("offline", ["limit=1"]).settings.name == "offline"
    assert load_assistant(Path("quickstart"), []).prompts == load_assistant(QUICKSTART, []).prompts


def test_a_file_of_that_name_goes_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("name: mine\ndata: {sources: [{type: table, path: rows.jsonl}]}\n")
    recipe, base = open_recipe(Path("quickstart"), None)
    assert (recipe.name, base) == ("mine", tmp_path)


def test_an_unknown_name_lists_those_that_come_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"'quickstrat': no such file, expected one, or .*quickstart"
    ) as refused:
        open_recipe(Path("quickstrat"), None)
    assert "prompts" not in str(refused.value)


@pytest.mark.slow
def test_the_wheel_holds_recipes_and_configurations(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "configs"):
        files = set((ROOT / folder).rglob("*.yaml"))
        assert len(files) > 3
        assert {f"sandbox_rl/{p.relative_to(ROOT)}" for p in files} <= names
