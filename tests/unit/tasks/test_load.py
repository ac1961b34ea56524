"""Loading: every bad row is told, the split never leaks, mixtures are deterministic."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sandbox_rl.errors import DataError
from sandbox_rl.tasks.config import DataSettings
from sandbox_rl.tasks.load import TaskSet, is_held_out, load_tasks


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def load(folder: Path, *sources: dict[str, Any], split: Any = "train", **settings: Any) -> TaskSet:
    settings = {"held_out": 0.0, "shuffle": False} | settings
    return load_tasks(
        DataSettings.model_validate({"sources": sources, **settings}), split=split, base_dir=folder
    )


def table(path: str, **more: Any) -> dict[str, Any]:
    return {"type": "table", "path": path, **more}


def test_every_bad_row_is_reported_with_its_place_and_reason(tmp_path: Path) -> None:
    good = {"id": "a", "prompt": "q", "answer": "x", "files": {}}
    rows = [
        good,
        {"id": "b", "prompt": "q"},
        {"id": "c", "prompt": None, "answer": "x"},
        {"id": "d", "prompt": "q" * (1 << 20), "answer": "x"},
        '{"id": "e", "prompt": "\\ud800", "answer": "x"}',
        good,
        '{"id": "g", "prompt": "q", "answer": NaN}',
        '{"id": "h", ',
        "[1]",
        {"id": "j", "prompt": " ", "answer": "x"},
        {"id": "k", "prompt": "q", "answer": ["x"]},
        {"id": "l", "prompt": "q\0", "answer": "x"},
        {"id": "m", "prompt": "q", "answer": "x", "files": {"../../etc/cron.d/x": "y"}},
        {"id": "n", "prompt": "q", "answer": 7, "files": None},
    ]
    jsonl(tmp_path / "bad.jsonl", rows)
    with (tmp_path / "bad.jsonl").open("ab") as file:
        file.write(b'{"id": "o", "prompt": "\xff", "answer": "x"}\n')
    source = table("bad.jsonl", columns={"id": "id", "files": "files"})
    tasks = load(tmp_path, source, on_bad_row="skip")
    assert [task.id for task in tasks] == ["a", "n"]
    assert tasks[1].answer == "7"
    told = {(bad.place, bad.field) for bad in tasks.report.dropped}
    assert told == {
        ("line 2", "answer"),
        ("line 3", "prompt"),
        ("line 4", "prompt"),
        ("line 5", "prompt"),
        ("line 6", "id"),
        ("line 7", "answer"),
        ("line 8", "row"),
        ("line 9", "row"),
        ("line 10", "prompt"),
        ("line 11", "answer"),
        ("line 12", "prompt"),
        ("line 13", "files"),
        ("line 15", "row"),
    }
    assert (tasks.report.rows, tasks.report.kept, tasks.report.dropped_rows) == (15, 2, 13)
    with pytest.raises(
        DataError, match=r"13 of 15 rows are bad: bad.jsonl line 2, answer: is missing"
    ) as info:
        load(tmp_path, source)
    assert "\n" not in str(info.value)
    assert "on_bad_row=skip" in str(info.value)


BAD_NAMES = [
    "../../etc/cron.d/x",
    "/etc/passwd",
    "a/../../b",
    "",
    ".",
    "x\0y",
    "n" * 300,
    "a//b",
    "C:\\x",
    "a\nb",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_hostile_file_names(tmp_path: Path, name: str) -> None:
    jsonl(tmp_path / "f.jsonl", [{"prompt": "q", "answer": "x", "files": json.dumps({name: "text"})}])
    with pytest.raises(DataError, match=r"line 1, files: file name"):
        load(tmp_path, table("f.jsonl", columns={"files": "files"}))
    (task,) = load(tmp_path, table("f.jsonl", columns={"files": "files"}, file_names="sanitize"))
    (safe,) = task.files
    assert safe
    assert not safe.startswith("/")
    assert ".." not in safe.split("/")
    assert safe.isprintable()


@pytest.mark.parametrize(
    "files", ['{"a": "1", "a": "2"}', '{"a": "1", "a/b": "2"}', '{"../a": "1", "a": "2"}']
)
def test_colliding_file_names(tmp_path: Path, files: str) -> None:
    jsonl(tmp_path / "f.jsonl", [{"prompt": "q", "answer": "x", "files": files}])
    with pytest.raises(DataError, match="collides"):
        load(tmp_path, table("f.jsonl", columns={"files": "files"}, file_names="sanitize"))


def test_the_papers_schema_from_parquet_and_jsonl(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": f"r{n}",
            "domain": "context_qa",
            "problem_statement": f"Question {n}?",
            "ground_truth": "A,C" if n % 2 else "the answer",
            "qa_type": "multiple_choice" if n % 2 else "free",
            "input_files": json.dumps({f"doc {n}.txt": "text ü"}) if n else None,
        }
        for n in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    jsonl(tmp_path / "d.jsonl", rows)
    columns = {
        "id": "id",
        "domain": "domain",
        "prompt": "problem_statement",
        "answer": "ground_truth",
        "files": "input_files",
        "scorer": "qa_type",
        "scorer_names": {"multiple_choice": "choice", "free": "f1"},
        "metadata": ["qa_type"],
    }
    one = list(load(tmp_path, table("d.parquet", columns=columns)))
    assert one == list(load(tmp_path, table("d.jsonl", columns=columns)))
    assert one[1].files == {"doc 1.txt": "text ü".encode()}
    assert one[0].files == {}
    assert [task.scorer for task in one[:2]] == ["f1", "choice"]
    assert one[1].metadata == {"qa_type": "multiple_choice"}
    columns["scorer_names"] = {"multiple_choice": "choice"}
    with pytest.raises(DataError, match="is 'free'; 'scorer_names' knows multiple_choice"):
        load(tmp_path, table("d.jsonl", columns=columns))
    columns["scorer_names"] = {"multiple_choice": "choice", "*": "rouge_l"}
    assert [task.scorer for task in load(tmp_path, table("d.jsonl", columns=columns))][:2] == [
        "rouge_l",
        "choice",
    ]


def test_csv_keeps_answers_as_written(tmp_path: Path) -> None:
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "answer"], ["two\nlines", "007"], ["q, r", "1e3"], ["s", ""]])
    tasks = load(tmp_path, table("c.csv"), on_bad_row="skip")
    assert [(task.prompt, task.answer) for task in tasks] == [("two\nlines", "007"), ("q, r", "1e3")]
    assert tasks.report.dropped[0].field == "answer"


@pytest.mark.parametrize(
    ("name", "text"), [("missing.jsonl", None), ("d.parquet", "no parquet"), ("d.docx", "x")]
)
def test_unreadable_files_are_reported(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        load(tmp_path, table(name))


def test_split_is_stable_and_disjoint(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"id": str(n), "prompt": f"q{n}", "answer": "x"} for n in range(400)])
    jsonl(tmp_path / "b.jsonl", [{"id": str(n), "prompt": f"q{n}", "answer": "x"} for n in range(800)])
    sides = {}
    for name in ("a.jsonl", "b.jsonl"):
        source = table(name, columns={"id": "id"})
        sides[name] = {
            split: {task.id for task in load(tmp_path, source, split=split, held_out=0.25, seed=len(name))}
            for split in ("train", "held_out")
        }
        assert not sides[name]["train"] & sides[name]["held_out"]
    assert sides["a.jsonl"]["held_out"] == {i for i in sides["b.jsonl"]["held_out"] if int(i) < 400}
    assert 0.18 < len(sides["b.jsonl"]["held_out"]) / 800 < 0.32


def test_rows_of_one_context_or_group_stay_together(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{n}", "answer": "x", "context": f"text {n // 5}", "doc": n // 10} for n in range(200)
    ]
    jsonl(tmp_path / "a.jsonl", rows)
    for columns in ({"context": "context"}, {"group": "doc"}):
        train, held = (
            {int(task.prompt[1:]) // (5 if "context" in columns else 10) for task in tasks}
            for tasks in (
                load(tmp_path, table("a.jsonl", columns=columns), split=split, held_out=0.3)
                for split in ("train", "held_out")
            )
        )
        assert train
        assert held
        assert not train & held


def test_generated_tasks_never_leak_whatever_seed_and_size() -> None:
    prompts: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for seed, size in ((0, 200), (7, 300)):
        source = {
            "type": "reasoning_gym",
            "dataset": "chain_sum",
            "seed": seed,
            "size": size,
            "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        }
        for split in prompts:
            prompts[split] |= {task.prompt for task in load(Path(), source, split=split, held_out=0.3)}
    assert prompts["train"]
    assert prompts["held_out"]
    assert not prompts["train"] & prompts["held_out"]


def test_generated_tasks_are_repeatable() -> None:
    source = {"type": "reasoning_gym", "dataset": "gcd", "size": 20, "seed": 3, "domain": "math"}
    one, two = load(Path(), source), load(Path(), source)
    assert list(one) == list(two)
    assert one[4].id == "gcd-3-4"
    assert [task.id for task in one[2:4]] == ["gcd-3-2", "gcd-3-3"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"dataset": "chainsum"}, "did you mean 'chain_sum'"),
        ({"dataset": "chain_sum", "params": {"no_such": 1}}, "no_such"),
        ({"dataset": "chain_sum", "params": {"min_terms": -1}}, "min_terms"),
        ({"dataset": "needle_haystack", "document": "../x"}, "'..'"),
    ],
)
def test_bad_generators_are_reported(source: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load(Path(), {"type": "reasoning_gym", **source})


def test_a_question_part_goes_into_a_file() -> None:
    source = {"type": "reasoning_gym", "dataset": "needle_haystack", "size": 1, "document": "people.txt"}
    source["params"] = {"min_num_statements": 10, "max_num_statements": 20}
    (task,) = load(Path(), source)
    assert len(task.files["people.txt"]) > len(task.prompt)
    assert task.prompt.startswith("Who")
    assert "people.txt" in task.prompt


def test_mixing_by_weight(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"id": f"a{n}", "prompt": "q", "answer": "x"} for n in range(90)])
    jsonl(tmp_path / "b.jsonl", [{"id": f"b{n}", "prompt": "q", "answer": "x"} for n in range(90)])
    a, b = (table(f"{name}.jsonl", weight=w, columns={"id": "id"}) for name, w in (("a", 3.0), ("b", 1.0)))
    ids = [task.id for task in load(tmp_path, a, b)]
    assert ids == [task.id for task in load(tmp_path, a, b)]
    assert len(ids) == 180
    for end in range(4, 120, 4):
        assert abs(Counter(i[0] for i in ids[:end])["a"] - 0.75 * end) <= 1
    stopped = [task.id[0] for task in load(tmp_path, a, b, exhausted="stop")]
    assert Counter(stopped)["a"] == 90
    assert abs(Counter(stopped)["b"] - 30) <= 1
    assert len(load(tmp_path, a, b, limit=7)) == 7


def test_context_becomes_files_with_distractors(tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": "q", "answer": "x", "context": f"Text {n // 2}."} for n in range(40)]
    jsonl(tmp_path / "a.jsonl", rows)
    source = table("a.jsonl", columns={"id": "id", "context": "context"}, context={"distractors": 3})
    tasks = load(tmp_path, source)
    assert tasks[5].files == load(tmp_path, source)[5].files
    places = Counter()
    for task in tasks:
        texts = [data.decode() for data in task.files.values()]
        assert len(texts) == len(set(texts)) == 4
        assert sorted(task.files) == [f"document_{n:02d}.txt" for n in range(1, 5)]
        places[texts.index(f"Text {int(task.id) // 2}.")] += 1
    assert len(places) == 4  # the right document is not always at one place
    held = {data for t in load(tmp_path, source, split="held_out", held_out=0.4) for data in t.files.values()}
    train = {data for t in load(tmp_path, source, split="train", held_out=0.4) for data in t.files.values()}
    assert not held & train


def test_documents_with_titles(tmp_path: Path) -> None:
    context = [{"title": "On Cats/Dogs", "text": "one"}, {"title": "", "text": "two"}]
    jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "answer": "x", "context": context}])
    (task,) = load(tmp_path, table("a.jsonl", columns={"context": "context"}))
    assert task.files == {"On_Cats_Dogs.txt": b"one", "document_02.txt": b"two"}


def test_hub_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="hf download --repo-type dataset no/such-data"):
        load(tmp_path, {"type": "hub", "dataset": "no/such-data"})


def test_empty_split_is_reported(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "answer": "x"}])
    with pytest.raises(DataError, match=r"train split of a\.jsonl is empty"):
        load(tmp_path, table("a.jsonl"), held_out=1.0)


def test_held_out_share() -> None:
    assert not is_held_out("x", 0.0)
    assert is_held_out("x", 1.0)
