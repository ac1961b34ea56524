"""Every gold answer is looked at before a run; one that is not understood is sound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox_rl.rewards.base import load_scorer
from sandbox_rl.rewards.text import clean
from sandbox_rl.rewards.trial import check_golds

from .conftest import make_task

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "golds.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("row", ROWS, ids=[row["gold"] for row in ROWS])
def test_a_sound_gold_answer_pays_its_answer(row: dict[str, str]) -> None:
    task = make_task(row["gold"], row["scorer"])
    assert check_golds([task]).bad == {}
    assert load_scorer(row["scorer"]).score(clean(row["answer"]), task) == 1.0


def test_what_is_compared_as_text_is_counted_by_its_source() -> None:
    golds = [("a", r"\sum_{k=1}^n k"), ("a", "7"), ("b", r"\int_0^1 x dx"), ("a", r"f \circ g"), ("b", "x+1")]
    tasks = [replace(make_task(gold), id=str(at), domain=source) for at, (source, gold) in enumerate(golds)]
    report = check_golds(tasks)
    assert report.bad == {}
    assert {source: sorted(found) for source, found in report.as_text.items()} == {
        "a": ["0", "3"],
        "b": ["2"],
    }
    assert "a: 2 compared as text, such as task '0'" in str(report)


def test_every_row_is_looked_at_and_the_unusable_are_named() -> None:
    tasks = [replace(make_task("1"), id=str(at)) for at in range(1000)]
    tasks[999] = replace(tasks[999], answer=" ")
    tasks[500] = replace(tasks[500], scorer="numeric", answer="blue")
    report = check_golds(tasks)
    assert list(report.bad) == ["500", "999"]
    assert list(check_golds(tasks, ["exact"]).bad) == ["999"]


def test_scorers_that_are_no_rules_of_ours_are_left_out() -> None:
    tasks = [make_task("", "judge"), make_task("", "json:loads"), make_task("", "reasoning_gym")]
    report = check_golds(tasks)
    assert report.bad == {}
    assert report.in_workers == (2,)
