"""`sandbox-rl init`: a recipe for anybody's rows that loads, says why, and overwrites nothing."""

from __future__ import annotations

import json

import pytest

from sandbox_rl import cli
from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.runs.starter import guess, starter_recipe
from sandbox_rl.tasks.rows import open_table
from sandbox_rl.training.placement import fake_cards

MATHS = [{"Question": f"What is {n} + {n}?", "ground_truth": 2 * n} for n in range(40)]
LETTERS = [{"id": n, "problem": "Which?", "label": "ABCD"[n % 4]} for n in range(40)]
WORDS = [{"question": "Who?", "answer": ("Ada Lovelace", "Kurt")[n % 2]} for n in range(40)]
TEXTS = [
    {"question": "Why?", "context": "Long.", "answer": "Because it rained all day " * 3} for _ in range(9)
]


def table(directory, rows):
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_table(path, "rows.jsonl")


@pytest.mark.parametrize(
    ("rows", "domain", "scorer", "columns"),
    [
        (MATHS, "math", "math", {"prompt": "Question", "answer": "ground_truth"}),
        (LETTERS, "general", "choice", {"prompt": "problem", "answer": "label", "id": "id"}),
        (WORDS, "general", "exact", {"prompt": "question", "answer": "answer"}),
        (TEXTS, "context_qa", "rouge_l", {"prompt": "question", "answer": "answer", "context": "context"}),
    ],
)
@pytest.mark.parametrize("cards", ["", "1x RTX 4090 24GB", "1x H100 80GB", "8x H100 80GB"])
def test_columns_and_scorer_are_guessed_and_the_recipe_loads(tmp_path, rows, domain, scorer, columns, cards):
    found = guess(table(tmp_path, rows), {})
    assert (found.domain, found.scorer, found.columns) == (domain, scorer, columns)
    text = starter_recipe(
        found, name="mine", rows=len(rows), path="rows.jsonl", model=None, cards=fake_cards(cards)
    )
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.policy.type == ("vllm" if cards else "transformers")
    assert (recipe.model.lora is not None) == cards.endswith("24GB")
    assert recipe.launch.config == ("fsdp2" if cards.startswith("8x") else None)
    assert recipe.data.sources[0].scorer == scorer
    assert found.why.replace("\n", " ") in text


def test_columns_of_other_names_are_asked_for_and_taken(tmp_path):
    rows = table(tmp_path, [{"frage": "Was?", "antwort": "Das"}])
    with pytest.raises(ConfigError, match="frage, antwort to be named; give --prompt COLUMN"):
        guess(rows, {})
    with pytest.raises(ConfigError, match=r"--answer: 'x', expected a column of rows.jsonl: frage"):
        guess(rows, {"prompt": "frage", "answer": "x"})
    found = guess(rows, {"prompt": "frage", "answer": "antwort"})
    assert found.columns == {"prompt": "frage", "answer": "antwort"}


def test_the_command_writes_a_new_file_only(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    table(tmp_path / "data", MATHS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SANDBOX_RL_FAKE_CARDS", "")
    written = []
    for code in (0, 2):
        with pytest.raises(SystemExit) as ended:
            cli.main(["init", "data/rows.jsonl", "-o", "mine.yaml", "--model", "some/model: 1"])
        assert ended.value.code == code
        written.append((tmp_path / "mine.yaml").read_bytes())
    assert written[0] == written[1]
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert (recipe.name, recipe.model.path) == ("mine", "some/model: 1")
    assert "sandbox-rl train mine.yaml --dry-run" in capsys.readouterr().out
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", "data/rows.jsonl", "-o", "link.yaml"])
    assert ended.value.code == 2
    assert "link.yaml exists already (a link)" in capsys.readouterr().err
    assert not (tmp_path / "nowhere.yaml").exists()
