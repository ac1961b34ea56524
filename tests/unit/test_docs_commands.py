"""What the documentation tells people to type is run here, or held against the program with a reason."""

from __future__ import annotations

import ast
import importlib
import random
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from sandbox_rl import BadGold, Task
from sandbox_rl.assistant.settings import AssistantSettings
from sandbox_rl.config.load import load_block, load_settings
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.suite import Suite, find_suite, load_suite
from sandbox_rl.registry import look_beside
from sandbox_rl.sandboxes.config import SandboxSettings
from tests import prepared
from tests.recorded_runs import bash, recipe_of, record, submit, training_scripts
from tests.unit.docs_commands import PAGES, ROOT, Command, blocks, commands, parsed

EPISODE = "train-000000-0000"
DONE_HERE = re.compile(
    r"(?:init|show|tokens|bundle|verify)\b|view .*--export|export-episodes .*jsonl"
    r"|train my-run.yaml --dry-run $|replay (?!.*(?:docker|--to-step))"
)
"""Commands of ours that are run below, in a directory with small runs of the names that the pages use."""
NOT_HERE = {
    r"replay \S+ --to-step": "updates once more: tests/smoke/test_replayed_updates.py",
    r"replay .*sandbox.type=docker": "wants an engine: tests/unit/replay/test_episodes.py",
    r"export-episodes .*--format (harbor|inspect)": "other formats: tests/unit/view/test_formats.py",
    r"train (recipes/)?llm-in-sandbox": "wants cards: tests/unit/test_recipes.py",
    r"train": "minutes: tests/smoke/test_run.py, tests/smoke/test_launch.py; its values are checked below",
    r"warmup": "minutes: tests/smoke/test_run.py",
    r"eval": "plays episodes: tests/smoke/test_eval.py, tests/smoke/test_eval_suites.py",
    r"compare": "wants evaluations: tests/smoke/test_eval.py",
    r"export ": "wants a trained run: tests/smoke/test_run.py",
    r"run": "wants a model that answers: tests/unit/assistant",
    r"doctor": "goes by the machine: tests/unit/test_doctor.py",
    r"check": "wants a ledger: tests/unit/runs/test_check.py",
    r"view": "serves until it is ended: tests/smoke/test_view_page.py",
    r"build-data": "wants a file of contexts: tests/unit/cli/test_build_data.py",
    r"fetch-model": "fetches a package: tests/unit/training/test_packaged_models.py",
    r"self-check": "minutes: tests/security/test_cases.py runs each of its cases",
    r"python-env": "installs packages: tests/unit/sandboxes",
    r"image": "wants an engine: tests/contract/test_docker_images.py",
}
"""Commands of ours that are only read as the program reads them, and who runs them; the first that fits."""
OTHERS = {
    "pip": "installs packages; extras are checked below",
    "source": "the shell's own",
    "python -m venv": "Python's own",
    "pytest": "a part of this suite",
    "pre-commit": "installs a hook",
    "mkdocs": "tests/unit/test_docs_site.py builds the site",
    "tensorboard": "another program, which serves until it is ended",
    "accelerate": "a launcher: tests/smoke/test_launch.py",
    "torchrun": "a launcher",
    "vllm": "another program: tests/vllm starts it",
    "docker": "another program",
    "ssh": "another program, to another machine",
    "sbatch": "wants a cluster",
}
NEEDED = {
    "sandbox.type=docker": "sandbox.image=sandbox-rl",
    "model.quantization=nf4": "model.lora={}",
}
"""What else a recipe says that such a value makes sense in."""
OURS = [command for command in commands() if Path(command.words[0]).name == "sandbox-rl"]


PROGRAMS = [command for command in commands() if command not in OURS]


def _why(command: Command) -> str | None:
    """Why a command of ours is not run here; None if it is."""
    typed = " ".join(command.words[1:])
    if DONE_HERE.match(f"{typed} "):
        return None
    found = (reason for pattern, reason in NOT_HERE.items() if re.match(pattern, typed))
    return next(found, "")


def _values(command: Command) -> dict[str, object] | None:
    """What it says; None of `--help`, and where a sentence names a command without its arguments."""
    try:
        return parsed(command.words)
    except typer.Exit:
        return None
    except typer.BadParameter as wrong:
        if command.inline and "Missing parameter" in str(wrong):
            return None
        raise


@pytest.mark.parametrize("command", dict.fromkeys(OURS), ids=lambda c: f"{c.page}: {c}"[:90])
def test_the_program_takes_every_command_of_ours(command):
    look_beside(ROOT / "examples")
    if (values := _values(command)) is None:
        return
    overrides = [word for word in command.words if re.match(r"[a-z][\w.]*=", word)]
    name = command.words[1]
    if name == "self-check":
        load_block(SandboxSettings, {"type": values["backend"]}, overrides)
    elif name == "run":
        load_settings(AssistantSettings, ROOT / "configs" / "assistant.yaml", overrides)
    elif name == "eval" and "quickstart" not in str(values["target"]):
        load_suite(find_suite("offline"), overrides)
    elif overrides:
        needed = [text for word, text in NEEDED.items() if word in overrides]
        load_settings(Recipe, ROOT / "recipes" / "quickstart.yaml", [*overrides, *needed])


def test_every_command_of_ours_is_run_or_there_is_a_reason():
    for command in dict.fromkeys(command for command in OURS if not command.inline):
        if (why := _why(command)) is not None:
            print(f"not run here: {command} ({why})")
            assert why, f"{command.page}: {command}: run it here, or say in NOT_HERE who does"
    for reason in NOT_HERE.values():
        for path in re.findall(r"tests/[\w/.]+", reason):
            assert (ROOT / path).exists(), reason


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with rows, a recipe, its model, and a run that has been recorded."""
    place = tmp_path_factory.mktemp("place")
    recipe = recipe_of(place, name="my-run")
    solved = (bash("echo 12 > answer.txt"), submit())
    record(recipe, training_scripts(recipe, 2, lambda task, index: solved, size=2))
    shutil.copy(place / "r.yaml", place / "my-run.yaml")
    return place


@pytest.mark.slow
def test_commands_that_take_seconds_are_run_as_they_stand(place, tmp_path):
    asked = [_filled(c.words[1:]) for c in OURS if not c.inline and _why(c) is None]
    # Once with each command, number of arguments and options; the test above reads all of them.
    kinds = {(words[0], len(words), *(w for w in words if w.startswith("-"))): words for words in asked}
    assert len(kinds) > 10
    for number, words in enumerate(kinds.values()):
        here = shutil.copytree(place, tmp_path / str(number))
        if words[0] == "init":
            (here / "my-run.yaml").unlink()  # it overwrites nothing
        if words[0] == "verify":
            assert _run(here, ["bundle", "runs/my-run", "--output", words[1]]).returncode == 0
        done = _run(here, words)
        print(f"run here: sandbox-rl {' '.join(words)}")
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


def _filled(words):
    """With the one run and the one episode that there are in the place of those of the pages."""
    words = [re.sub(r"^(?:runs/[\w-]+|RUN)", "runs/my-run", word) for word in words]
    return tuple(EPISODE if word in ("EPISODE", "train-000012-0003") else word for word in words)


def _run(place, words):
    return prepared.run([sys.executable, "-m", "sandbox_rl", *words], cwd=place)


def test_scripts_and_modules_exist_and_know_the_options():
    files = (path for part in ("sandbox_rl", "tests") for path in (ROOT / part).rglob("*.py"))
    read = set(re.findall(r"SANDBOX_RL_\w+", "".join(path.read_text() for path in files)))
    for command in PROGRAMS:
        for variable in command.variables:
            name = variable.split("=")[0]
            assert not name.startswith("SANDBOX_RL_") or name in read, f"{command.page}: {command}"
        if (file := _file_of(command)) is None:
            assert any(_starts(command, program) for program in OTHERS), f"{command.page}: {command}"
            continue
        assert file.is_file(), f"{command.page}: {command}"
        text = file.read_text()
        options = [word.split("=")[0] for word in command.words if word.startswith("--")]
        assert [option for option in options if option not in text] == [], f"{command.page}: {command}"


def _starts(command: Command, program: str) -> bool:
    words = (Path(command.words[0]).name, *command.words[1:])
    return words[: len(program.split())] == tuple(program.split())


def _file_of(command: Command) -> Path | None:
    """The script or module of this repository that a command runs."""
    words = command.words[1:] if re.fullmatch(r"python3?", Path(command.words[0]).name) else command.words
    if words[0].startswith("scripts/"):
        return ROOT / words[0]
    if words[0] == "-m" and words[1].startswith("tests."):
        return ROOT / f"{words[1].replace('.', '/')}.py"
    return None


def test_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra
        for page in PAGES
        for extra in re.findall(r"sandbox-rl\[(\w+)\]|'\.\[(\w+)\]'", page.read_text())
    }
    assert len(named) >= 3
    assert {extra for pair in named for extra in pair if extra} <= known.keys()


PYTHON = [(page.name, text) for page in PAGES for language, text in blocks(page) if language == "python"]


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[f"{page}-{i}" for i, (page, _) in enumerate(PYTHON)])
def test_python_in_pages_compiles_and_imports_what_exists(page, text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sandbox_rl"):
            module = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(module, name.name)] == [], page


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The folder of the modules that pages tell to write: blocks that begin with `# NAME.py`."""
    folder = tmp_path_factory.mktemp("modules")
    for _, text in PYTHON:
        if named := re.match(r"# (\w+\.py)\n", text):
            (folder / named[1]).write_text(text)
    return folder


def test_the_scorer_of_the_guide_scores(modules):
    look_beside(modules)
    score = importlib.import_module("my_scorer").close_enough
    task = Task("t", "?", "200")
    assert [score(answer, task) for answer in ("201", "199.0", "210", "two hundred")] == [1, 1, 0, 0]
    with pytest.raises(BadGold):
        score("1", Task("t", "?", "many"))


def test_the_expert_of_the_guide_plays(modules):
    look_beside(modules)
    turns = importlib.import_module("my_expert").reads_then_answers(Task("t", "?", "7"), random.Random(0))
    said = [next(turns), turns.send("seen"), turns.send("written")]
    assert [turn.calls[0].name for turn in said] == ["execute_bash", "execute_bash", "submit"]


YAML = [(page.name, text) for page in PAGES for language, text in blocks(page) if language == "yaml"]


@pytest.mark.parametrize(("page", "text"), YAML, ids=[f"{page}-{i}" for i, (page, _) in enumerate(YAML)])
def test_settings_in_pages_are_those_of_recipes(page, text, modules):
    for folder in (ROOT / "examples", modules):
        look_beside(folder)
    told = yaml.safe_load(text.replace("sha256:…", f"sha256:{0:064}"))
    if not isinstance(told, dict) or not told.keys() & {*Recipe.model_fields, *Suite.model_fields}:
        return  # a prompt set, a cluster's job
    if "parts" in told:
        Suite.model_validate(told)
        return
    tasks = {"sources": [{"type": "reasoning_gym", "dataset": "chain_sum"}]}
    Recipe.model_validate({"data": tasks, **told})
