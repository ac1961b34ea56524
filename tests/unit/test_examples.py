"""The examples of docs/extending.md do what they say; training by them is in smoke/test_examples.py."""

from __future__ import annotations

import importlib
import importlib.metadata
import random
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sandbox_rl import (
    Answer,
    AnswerStatus,
    ChatFormat,
    ExecResult,
    ExecStatus,
    Journal,
    Reward,
    Rollout,
    StopReason,
    Stream,
    Task,
    ToolCall,
    ToolFailure,
    Trajectory,
    cli,
    load_recipe,
    load_tasks,
    make_toolbox,
)
from sandbox_rl.fakes import RecordingSandbox
from sandbox_rl.registry import look_beside
from sandbox_rl.tools.text import MAX_OBSERVATION_CHARS
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import MalformedCall

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module", autouse=True)
def beside():
    look_beside(EXAMPLES)


@pytest.fixture(scope="module")
def recipe(beside):
    return load_recipe(EXAMPLES / "own.yaml")


def test_the_recipe_finds_what_lies_beside_it(recipe):
    assert type(recipe.sandbox).__module__ == "own_backend"
    assert recipe.sandbox.inner.type == "embedded"
    assert recipe.grpo["epsilon_high"] == 0.28
    tasks = [load_tasks(recipe.data, split=split, base_dir=EXAMPLES) for split in ("train", "held_out")]
    assert [len(found) for found in tasks] == [120 - len(tasks[1]), len(tasks[1])]
    assert {task.domain for task in tasks[0]} == {"codes"}
    assert not {task.id for task in tasks[0]} & {task.id for task in tasks[1]}


def test_a_scorer_says_more_than_its_reward():
    score = importlib.import_module("own_scorer").digits
    assert score(" 123\n", Task("t", "?", "123")) == {"value": 1.0, "digits_right": 1.0}
    assert score("193", Task("t", "?", "123")) == {"value": 0.0, "digits_right": pytest.approx(2 / 3)}


async def test_a_tool_is_described_run_and_bounded_like_ours(recipe):
    toolbox = make_toolbox(recipe.tools)
    assert [schema["function"]["name"] for schema in toolbox.schemas] == [
        "execute_bash",
        "submit",
        "count_words",
    ]
    words = Stream(b"7" * 50_000, b"", 50_000)
    sandbox = RecordingSandbox(answer_exec=lambda _: ExecResult(ExecStatus.OK, 0, stdout=words))
    said = await toolbox.run(sandbox, ToolCall("count_words", {"path": "a b.txt"}), timeout=9)
    assert sandbox.calls[0].arguments["command"] == "wc -w < 'a b.txt'"
    assert len(said.text) <= MAX_OBSERVATION_CHARS
    said = await toolbox.run(sandbox, ToolCall("count_words", {}), timeout=9)
    assert said.failure is ToolFailure.BAD_ARGUMENTS
    said = await toolbox.run(sandbox, ToolCall("count_word", {}), timeout=9)
    assert "Did you mean count_words?" in said.text


def test_a_dialect_is_read_as_it_is_written(recipe):
    schemas = make_toolbox(recipe.tools).schemas
    chat = ChatFormat.from_tokenizer(tiny_tokenizer(), schemas, call_format=recipe.chat.call_format)
    calls = (ToolCall("execute_bash", {"command": "echo '@@ not a call'"}), ToolCall("submit", {}))
    ids = chat.render_call("First this.", calls)
    assert '@@execute_bash {"command": ' in chat.decode(ids)
    assert chat.parse(ids) == calls
    (broken,) = chat.parse(chat.render_call("@@execute_bash command", ()))
    assert isinstance(broken, MalformedCall)


def test_the_expert_shows_both_ways():
    expert = importlib.import_module("own_expert").reads_or_guesses
    task = Task("t", "?", "123")
    turns = [list(expert(task, random.Random(seed))) for seed in range(8)]
    commands = {turn[0].calls[0].arguments["command"] for turn in turns}
    assert commands == {"cp documents/code.txt answer.txt", "echo 123 > answer.txt"}


def test_an_installed_package_adds_a_command(tmp_path, monkeypatch):
    group = cli.COMMANDS.group
    entry = importlib.metadata.EntryPoint("count", "own_command:app", group)
    monkeypatch.setattr(
        "sandbox_rl.registry.entry_points", lambda group: [entry] * (group == cli.COMMANDS.group)
    )
    with Journal(tmp_path / "journal") as journal:
        for number, value in enumerate((1.0, 0.0, None, 0.5)):
            answer, name = Answer(AnswerStatus.OK, "4"), f"e-{number}"
            trajectory = Trajectory("t", (1,), (), StopReason.SUBMITTED, answer, name)
            journal.ended(Rollout(trajectory, Reward(value), Task("t", "?", "4")))
    done = CliRunner().invoke(cli.whole_app(), ["count", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, "2 of 4 episodes earned something\n")


def test_the_page_about_extending_names_only_what_is_there():
    page = (ROOT / "docs" / "extending.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)[2:]
    assert len(rows) == 15
    for change, place, example in rows:
        for named in re.findall(r"`((?:sandbox_rl|examples)/[\w./]+)`", f"{place} {example}"):
            assert (ROOT / named).is_file(), f"{change}: {named} is not there"
        ours = re.findall(r"sandbox_rl/[\w/]+\.py", place)
        assert len(ours) + ("a file of yours" in place) <= 1, f"{change}: more than one file"
    for name, file in re.findall(r"`(\w+)` in `(sandbox_rl/[\w/]+\.py)`", page):
        assert re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), name
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert isinstance(yaml.safe_load(block), dict)
