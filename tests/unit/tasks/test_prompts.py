"""Prompt sets: found, checked, and filled in without ever reading a task as a template."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_rl.errors import ConfigError
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR
from sandbox_rl.tasks.prompts import PromptSet, load_prompt_set, render, render_plain
from sandbox_rl.types import Task

DOMAINS = ["general", "math", "physics", "chemistry", "biomedicine", "long_context", "instruction_following"]
DOMAINS += ["context_qa"]

HOSTILE = "{% for i in range(9) %}A{% endfor %}{# c #} {0.__class__} {problem_statement} {input_dir} %s {"


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_keeps_the_contract(domain: str) -> None:
    prompt_set = load_prompt_set(domain)
    task = Task(id="t", prompt=HOSTILE, answer="GOLD")
    system, user = render(task, prompt_set)
    assert (system.role, user.role) == ("system", "user")
    assert user.content.count(HOSTILE) == 1
    text = system.content + user.content
    for needed in (WORKING_DIR, INPUT_DIR, ANSWER_FILE, "execute_bash", "str_replace_editor", "submit"):
        assert needed in text
    assert "GOLD" not in text
    rest = text.replace(HOSTILE, "")
    assert not any(f"{{{name}}}" in rest for name in ("working_dir", "input_dir", "output_dir", "documents"))


def test_the_layout_is_the_sandboxes() -> None:
    words = PromptSet("x", "{working_dir} {input_dir} {output_dir}/answer.txt", "{problem_statement}")
    system, _ = render(Task("t", "?", ""), words)
    assert system.content == f"{WORKING_DIR} {INPUT_DIR} {ANSWER_FILE}"


def test_plain_puts_documents_into_the_prompt() -> None:
    task = Task(id="t", prompt="Who {documents}?", answer="x", files={"a.txt": b"Text {problem_statement}."})
    system, user = render_plain(task, load_prompt_set("context_qa"))
    assert user.content.startswith("=== a.txt ===\nText {problem_statement}.\n\nWho {documents}?")
    assert "execute_bash" not in system.content + user.content


def test_own_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "math.yaml").write_text("system: ''\ninstance: 'Do {problem_statement}'\n")
    assert (
        render(Task(id="t", prompt="x", answer="y"), load_prompt_set("math", [tmp_path]))[0].content == "Do x"
    )
    assert load_prompt_set("physics", [tmp_path]).name == "physics"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("system: s", "lacks 'instance'"),
        ("system: s\ninstance: none", "problem_statement"),
        ("system: s\ninstance: '{problem_statement}'\nsytem: x", "did you mean 'system'"),
        ("system: 3\ninstance: '{problem_statement}'", "must be text"),
        ("- a", "mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_bad_prompt_files_are_reported_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told) as info:
        load_prompt_set("mine", [tmp_path])
    assert "\n" not in str(info.value)
    assert "mine.yaml" in str(info.value)


@pytest.mark.parametrize(("domain", "told"), [("maths", "did you mean 'math'"), ("../x", "cannot name")])
def test_unknown_domain(domain: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_prompt_set(domain)


def test_unknown_braces_stay() -> None:
    prompt_set = PromptSet("x", system="", instance="{problem_statement} {other} {}")
    assert render(Task(id="t", prompt="p", answer="a"), prompt_set)[0].content == "p {other} {}"
