"""The page of results, and what may never break it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.page import page
from sandbox_rl.evaluation.plan import EvaluationPlan, Part, parts_by_domain, task_key
from sandbox_rl.evaluation.results import Results, results_of
from sandbox_rl.evaluation.run import EpisodeRow
from sandbox_rl.policies.base import Sampling
from sandbox_rl.types import Task

TASKS = {name: [Task(f"{name}{i}", f"{name} {i}?", "42") for i in range(4)] for name in ("easy", "hard")}


def plan(
    name="demo", model="m", modes=("sandbox", "plain"), samples=2, tasks=TASKS, **fields
) -> EvaluationPlan:
    parts = tuple(Part(part, inside, samples) for part, inside in tasks.items())
    return EvaluationPlan(name, model, parts, modes, 0, Sampling(), **fields)


COUNTS = {"turns": 2, "calls": 2, "tokens/prompt": 100, "tokens/sampled": 30, "tokens/observed": 10}
COUNTS |= {"seconds/episode": 1.0, "seconds/generation": 0.5, "seconds/execution": 0.25}


def rows(plan: EvaluationPlan, reward) -> list[EpisodeRow]:
    """One row per episode; `reward(mode, part, sample)` gives its reward."""
    made = []
    for mode in plan.modes:
        for part, request in plan.requests(mode):
            sample = int(request.id.rsplit("-", 1)[1])
            made.append(
                EpisodeRow(
                    episode_id=request.id,
                    task_id=request.task.id,
                    part=part.name,
                    mode=mode,
                    reward=reward(mode, part.name, sample),
                    stop="submitted",
                    by_fallback=False,
                    counts=COUNTS,
                )
            )
    return made


def results(name="demo", model="m", reward=None, **fields) -> Results:
    made = plan(name, model, **fields)
    # With a computer all that is easy and every other sample of what is hard; without it only the easy.
    reward = reward or (lambda mode, part, s: float(part == "easy" or (mode == "sandbox" and s == 0)))
    return results_of(rows(made, reward), made)


def cells(text: str, title: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_numbers_of_one_run():
    text = page([results()])
    assert "# Evaluation: demo" in text
    assert "model `m`, 8 tasks, 2 samples each, seed 0" in text
    assert cells(text, "accuracy (avg@k)") == ["75.0 % [49.2, 90.3]", "50.0 % [21.5, 78.5]"]
    assert cells(text, "easy")[0].startswith("100.0 %")
    assert cells(text, "hard")[0].startswith("50.0 %")
    assert cells(text, "mean of the parts") == ["75.0 %", "50.0 %"]
    assert cells(text, "pass@2") == ["100.0 %", "50.0 %"]
    assert cells(text, "hard pass@2") == ["100.0 %", "0.0 %"]
    assert cells(text, "environment's share of tokens") == ["25.0 %", "25.0 %"]
    assert cells(text, "demo | all")[1].startswith("+25.0 points [")
    assert "not judged |" not in text


def test_a_figure_says_on_how_many_tasks_it_is_based():
    some = results(reward=lambda mode, part, s: None if part == "hard" else 1.0)
    assert some.headline() == "100.0 % [51.0, 100.0] of 4 tasks judged, 4 not judged"
    samples = results(reward=lambda mode, part, s: None if part == "hard" and s else 1.0)
    assert samples.headline() == "100.0 % [67.6, 100.0] of 8 tasks judged, 4 episodes not judged"


def test_an_evaluation_averages_over_tasks_not_episodes():
    found = results(
        tasks={"a": TASKS["easy"][:1], "b": TASKS["easy"][1:2]},
        reward=lambda m, p, s: None if p == "b" and s else float(p == "b" or not s),
    )
    mode = found.modes["sandbox"]
    assert (mode.accuracy.value, mode.episodes, mode.unjudged) == (0.75, 3, 1)
    assert mode.pass_at == {1: 0.75}


def test_what_is_missing_is_reported():
    def reward(mode, part, sample):
        return None if part == "hard" and sample else 1.0

    found = results(reward=reward, skipped={"far": "package 'x' is not installed"})
    assert (found.unjudged, found.faults) == (8, 0)
    text = page([found])
    assert "left out: far (package 'x' is not installed)" in text
    assert "8 episodes were not judged" in text
    assert cells(text, "episodes judged") == ["12", "12"]
    assert cells(text, "episodes not judged") == ["4", "4"]


def test_what_a_rule_judged_in_the_judge_s_place_is_labelled():
    made = plan()
    rewarded = [replace(row, by_fallback=row.part == "hard") for row in rows(made, lambda *_: 1.0)]
    assert cells(page([results_of(rewarded, made)]), "of them by a rule, the judge being down") == ["8", "8"]
    assert "by a rule" not in page([results()])


def test_runs_are_paired_over_the_tasks_that_are_the_same():
    changed = {**TASKS, "hard": [replace(task, answer="43") for task in TASKS["hard"]]}
    other = results("again", "n", tasks=changed, reward=lambda mode, part, s: 0.0)
    text = page([results(), other])
    assert "# Comparison of 2 evaluations" in text
    # Only the easy tasks are the same: 100 % before, 0 % now.
    assert "| again, n | sandbox | -100.0 points [-100.0, -2.0] | 4 |" in text
    nothing = results("third", tasks={"easy": [replace(t, prompt="?") for t in TASKS["easy"]]})
    assert "| third, m | sandbox | – | 0 |" in page([results(), nothing])


def test_names_from_outside_make_no_markup():
    text = page([results("a|b", "x`y\n| z | <script>")])
    assert "<script>" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table)
    assert "\n| z |" not in text
    assert page([results()]) == page([results()])


def test_results_survive_json():
    found = results(skipped={"far": "why"})
    assert Results.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="format 0, expected 2"):
        Results.from_json(found.to_json() | {"format": 0})


def test_nothing_judged_makes_a_page_too():
    assert "–" in page([results(reward=lambda *_: None)])


def test_a_plan_refuses_what_cannot_be_told_apart():
    twice = {"a": TASKS["easy"], "b": TASKS["easy"]}
    with pytest.raises(ConfigError, match="task 'easy0' is in part 'a' and again in 'b'"):
        plan(tasks=twice)
    with pytest.raises(ConfigError, match="there is no task to evaluate"):
        plan(tasks={})


def test_a_task_s_key_follows_what_is_asked_and_scored():
    task = Task("t", "2+2?", "4", files={"a.txt": b"x"})
    assert task_key(task) == task_key(replace(task, id="u", metadata={"n": 1}))
    changes = [
        {"prompt": "2+3?"},
        {"answer": "5"},
        {"files": {"b.txt": b"x"}},
        {"scorer": "math"},
        {"domain": "m"},
    ]
    assert len({task_key(replace(task, **change)) for change in changes} | {task_key(task)}) == 6


def test_parts_of_a_recipe_are_its_domains():
    tasks = [Task(f"t{i}", "?", "1", domain="ab"[i % 2]) for i in range(5)]
    assert [(part.name, len(part.tasks)) for part in parts_by_domain(tasks, 1)] == [("a", 3), ("b", 2)]
