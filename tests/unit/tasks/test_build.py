"""Building context tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_rl.build_data.builder import BuildReport, build_data
from sandbox_rl.build_data.config import BuildSettings
from sandbox_rl.build_data.files import split_text
from sandbox_rl.errors import DataError
from sandbox_rl.tasks.config import DataSettings
from sandbox_rl.tasks.load import load_tasks


def build(folder: Path, rows: list[Any], **settings: Any) -> tuple[BuildReport, dict[str, dict[str, Any]]]:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "type": "table",
        "path": "in.jsonl",
        "scorer": "f1",
        "columns": {"prompt": "q", "answer": "a", "context": "c"},
    }
    model = BuildSettings.model_validate({"source": source, "output_dir": "out", "held_out": 0.0} | settings)
    shutil.rmtree(folder / "out", ignore_errors=True)  # nothing is ever overwritten
    report = build_data(model, base_dir=folder)
    lines = [
        json.loads(line)
        for n in ("train", "held_out")
        for line in (folder / f"out/{n}.jsonl").read_text().splitlines()
    ]
    return report, {line["problem_statement"].rpartition("\n")[2]: line for line in lines}


def files(line: dict[str, Any]) -> dict[str, str]:
    return json.loads(line["input_files"])


ROWS = [{"q": f"Question {n}?", "a": f"answer{n}", "c": f"Text number {n // 3}."} for n in range(60)]


def test_short_contexts_get_distractors_of_their_side(tmp_path: Path) -> None:
    report, lines = build(tmp_path, ROWS, distractors=3, held_out=0.4)
    assert (report.rows, report.contexts, report.dropped_rows) == (60, 20, 0)
    assert report.train + report.held_out == 60
    seen: dict[str, set[str]] = {}
    for side in ("train", "held_out"):
        texts = {
            text
            for line in (tmp_path / f"out/{side}.jsonl").read_text().splitlines()
            for text in files(json.loads(line)).values()
        }
        seen[side] = texts
    assert seen["train"]
    assert seen["held_out"]
    assert not seen["train"] & seen["held_out"]
    one = files(lines["Question 7?"])
    assert len(set(one.values())) == 4
    assert "Text number 2." in one.values()
    assert sorted(one) == [f"document_{n:02d}.txt" for n in range(1, 5)]


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    outputs = []
    for seed in (1, 1, 2):
        build(tmp_path, ROWS, seed=seed)
        outputs.append((tmp_path / "out/train.jsonl").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


def test_earlier_questions_become_examples_that_do_not_tell(tmp_path: Path) -> None:
    rows = [{"q": f"Q{n}?", "a": a, "c": "One text."} for n, a in enumerate(["x", "y", "X", "z"])]
    report, lines = build(tmp_path, rows, examples=2)
    assert lines["Q0?"]["problem_statement"] == "Q0?"
    assert "Question: Q0?\nAnswer: x" in lines["Q1?"]["problem_statement"]
    assert "Q0?" not in lines["Q2?"]["problem_statement"]  # its answer is the one asked for
    last = lines["Q3?"]["problem_statement"]
    assert last.index("Q1?") < last.index("Q2?") < last.index("Q3?")
    assert report.examples == 4


def test_documents_keep_titles_and_long_ones_are_split(tmp_path: Path) -> None:
    long = "\n\n".join(f"Paragraph {n}. " + "word " * 30 for n in range(20))
    rows = [
        {
            "q": "Q1?",
            "a": "x",
            "c": [{"title": "On Cats", "text": "one"}, {"title": "On Cats", "text": "two"}],
        },
        {"q": "Q2?", "a": "x", "c": [{"title": "Long", "text": long}]},
    ]
    report, lines = build(tmp_path, rows, max_file_chars=1000)
    assert files(lines["Q1?"]) == {"On_Cats.txt": "one", "On_Cats_2.txt": "two"}
    parts = files(lines["Q2?"])
    assert next(iter(parts)) == "Long_part_1.txt"
    assert all(len(text) <= 1000 and text.startswith("Paragraph") for text in parts.values())
    assert report.split_documents == 1


def test_an_answer_in_a_file_name_is_refused(tmp_path: Path) -> None:
    rows = [
        {"q": "Capital?", "a": "Paris", "c": [{"title": "The city of Paris, 2020", "text": "t"}]},
        {"q": "Other?", "a": "1", "c": [{"title": "Page 12", "text": "u"}]},
    ]
    report, lines = build(tmp_path, rows, distractors=0)
    assert list(lines) == ["Other?"]
    assert report.by_field == {"c": 1}
    assert "Paris" in report.dropped[0].reason


def test_bad_rows_are_reported_and_nothing_usable_is_an_error(tmp_path: Path) -> None:
    bad = [{"q": "Q?", "a": None, "c": "t"}, {"q": "Q?", "a": "x"}, {"q": "Q?", "a": "x", "c": [3]}]
    report, _ = build(tmp_path, [*bad, *ROWS[:1]])
    assert [(row.place, row.field) for row in report.dropped] == [
        ("line 1", "a"),
        ("line 2", "c"),
        ("line 3", "c"),
    ]
    assert json.loads((tmp_path / "out/report.json").read_text())["dropped_rows"] == 3
    with pytest.raises(
        DataError, match=r"none of 3 rows of in\.jsonl is usable; the first: in\.jsonl line 1, a: is null"
    ):
        build(tmp_path, bad)
    assert not (tmp_path / "out").exists()


def test_what_is_built_loads_with_the_same_split(tmp_path: Path) -> None:
    odd = [
        ROWS[0],
        {**ROWS[1], "s": "no such"},
        {**ROWS[2], "d": " "},
    ]  # a row again, and what loading refuses
    rows = [{"s": "words", "d": "facts", **row} for row in (*ROWS, *odd)]
    columns = {"prompt": "q", "answer": "a", "context": "c", "domain": "d", "scorer": "s"}
    columns["scorer_names"] = {"words": "f1"}  # type: ignore[assignment]
    given = {"type": "table", "path": "in.jsonl", "columns": columns}
    report, _ = build(tmp_path, rows, held_out=0.3, source=given)
    assert (report.train + report.held_out, report.by_field) == (60, {"id": 1, "s": 1, "d": 1})
    columns = {
        "id": "id",
        "domain": "domain",
        "scorer": "scorer",
        "files": "input_files",
        "group": "context_id",
    }
    columns |= {"prompt": "problem_statement", "answer": "ground_truth"}
    source = {"type": "table", "columns": columns}
    sizes = {}
    for side, share in (("train", 0.0), ("held_out", 1.0)):
        sources = [{**source, "path": f"out/{side}.jsonl"}]
        data = DataSettings.model_validate({"sources": sources, "held_out": share})
        sizes[side] = len(load_tasks(data, split=side, base_dir=tmp_path))  # type: ignore[arg-type]
    assert sizes == {"train": report.train, "held_out": report.held_out}


@given(st.text(alphabet="ab .\n#", max_size=400), st.integers(1, 50))
def test_splitting_loses_only_white_space(text: str, limit: int) -> None:
    pieces = split_text(text, limit)
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_splitting_prefers_sections() -> None:
    text = "# One\n" + "a " * 20 + "\n# Two\n" + "b " * 20
    assert [piece[:5] for piece in split_text(text, 60)] == ["# One", "# Two"]
