"""Statistics, tool mix and the answer in a reply, against values worked out by hand."""

from __future__ import annotations

import random
import time

import pytest

from sandbox_rl.evaluation.statistics import mean_over_tasks, paired_difference, pass_at
from sandbox_rl.evaluation.tool_mix import Use, uses_of
from sandbox_rl.rewards.reply import answer_of_reply, last_boxed
from sandbox_rl.types import AnswerStatus
from tests.growth import assert_linear

N, F, C = Use.NETWORK, Use.FILES, Use.COMPUTATION


def test_one_sample_of_0_or_1_for_each_task_has_wilson_s_interval():
    """Against the values of the published formula, by hand: p = 1/2 of 4, 30 of 30, 0 of 20."""
    z = 1.959964
    mean = mean_over_tasks([0.0, 1.0, 0.0, 1.0])
    assert (mean.value, mean.tasks) == (0.5, 4)
    half = z * (0.25 / 4 + z**2 / 64) ** 0.5 / (1 + z**2 / 4)
    assert (mean.low, mean.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert str(mean_over_tasks([1.0] * 30)) == "100.0 % [88.6, 100.0]"
    assert str(mean_over_tasks([0.0] * 20)) == "0.0 % [0.0, 16.1]"
    assert mean_over_tasks([]) is None


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tasks", [1, 2, 30])
def test_tasks_that_all_came_out_alike_prove_no_certainty(value, tasks):
    mean = mean_over_tasks([value] * tasks)
    assert 0 <= mean.low <= value <= mean.high <= 1
    assert mean.high - mean.low > 3 / (tasks + 4)
    gap = paired_difference({str(i): value for i in range(tasks)}, {str(i): 0.0 for i in range(tasks)})
    assert gap.high - gap.low > 3 / (tasks + 4)


def test_tasks_that_differ_little_tell_more_than_as_many_zeros_and_ones():
    narrow = mean_over_tasks([0.4, 0.5, 0.6, 0.5] * 5)
    wide = mean_over_tasks([0.0, 1.0, 0.0, 1.0] * 5)
    assert narrow.value == wide.value == pytest.approx(0.5)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 4


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(("tasks", "rate"), [(10, 0.5), (10, 0.9), (30, 0.9), (100, 0.98)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(tasks, rate, samples):
    """Tasks of their own difficulty, some samples of each; 95 % is promised."""
    generator = random.Random(tasks + samples)
    hits = 0
    for _ in range(400):
        chances = [generator.betavariate(4 * rate, 4 * (1 - rate)) for _ in range(tasks)]
        means = [sum(generator.random() < p for _ in range(samples)) / samples for p in chances]
        mean = mean_over_tasks(means)
        hits += mean.low <= rate <= mean.high
    assert hits >= 368  # 92 %; the standard error of 400 trials is 1.1 %


def test_pass_at_k_is_unbiased():
    assert pass_at([(4, 2)]) == {1: 0.5, 2: pytest.approx(1 - 1 / 6), 4: 1.0}
    assert pass_at([(3, 0), (5, 5)]) == {1: 0.5, 2: 0.5, 3: 0.5}
    assert pass_at([]) == {}


def test_paired_difference_is_over_shared_tasks_only():
    first = {"a": 1.0, "b": 1.0, "c": 0.0, "only": 1.0}
    gap = paired_difference(first, {"a": 0.0, "b": 1.0, "c": 0.0})
    assert gap is not None
    assert (gap.value, gap.tasks) == (pytest.approx(1 / 3), 3)
    assert gap.low < 0 < gap.value < gap.high <= 1  # three tasks say little
    assert paired_difference(first, {"z": 1.0}) is None


def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says():
    generator = random.Random(1)
    hits = 0
    for _ in range(200):
        pairs = [(float(generator.random() < 0.7), float(generator.random() < 0.5)) for _ in range(40)]
        first = {str(i): a for i, (a, _) in enumerate(pairs)}
        second = {str(i): b for i, (_, b) in enumerate(pairs)}
        gap = paired_difference(first, second)
        assert gap is not None
        hits += gap.low <= 0.2 <= gap.high
    assert hits >= 182


@pytest.mark.parametrize(
    ("command", "uses"),
    [
        ("curl -s https://example.org", {N}),
        ("pip install sympy && python solve.py", {N, C}),
        ("python3 -m pip install sympy", {N}),
        ("cat documents/a.txt | grep -n year", {F}),
        ("python3 - <<'E'\nprint(open('a').read())\nE", {F, C}),
        ("echo $((6*7)) > answer.txt", {C}),
        ("echo 42 > answer.txt", set()),
        ("cd /testbed; ls", {F}),
        ("echo 'I could use cat or curl'", set()),
        ("import requests", {N}),
        ("for i in 1 2; do wc -l $i; done", {F}),
        ("git clone x", {N}),
    ],
)
def test_uses_of_a_command(command, uses):
    assert uses_of("execute_bash", {"command": command}) == uses


def test_a_long_command_is_looked_at_in_time_that_grows_with_it():
    """A policy chooses the command: runs of blanks cost no more than other text."""

    def seconds(size: int) -> float:
        started = time.process_time()
        for piece in ("\n", " ", "\t", ";", "do ", "; \n", "pip install -a "):
            uses_of("execute_bash", {"command": (piece * size)[:size]})
        return time.process_time() - started

    assert seconds(20_000) < 100 * max(seconds(1_000), 1e-3)


def test_uses_of_other_tools():
    assert uses_of("str_replace_editor", {"command": "view", "path": "/testbed/a"}) == {F}
    assert uses_of("str_replace_editor", {"command": "create", "path": "/testbed/a"}) == set()
    assert uses_of("execute_bash", {"command": 3}) == set()
    assert uses_of("invented", {"command": "curl x"}) == set()


@pytest.mark.parametrize(
    ("reply", "scorer", "answer"),
    [
        (r"First \boxed{1}, no: \boxed{\frac{1}{2}}.", "math", r"\boxed{\frac{1}{2}}"),
        (r"So \boxed{7}", "exact", "7"),
        ("We get x = 3.\nThe answer is 42.", "math", "42"),
        ("The answer is 41. Wait.\n**Answer:** 42\n", "math", "42"),
        ("Reasons.\n\n**B**", "choice", "B"),
        ("The correct answer is B.\nBecause it is.", "choice", "B"),
        ("Answer: A, C", "choice", "A, C"),
        ("He went home.\nParis\n", "exact", "Paris"),
        ("Answer: Paris", "exact", "Paris"),
        ("line one\nline two", "rules", "line one\nline two"),
        ("<think>is it 41?</think>\n42", "exact", "42"),
        ("it was opened before</think>42", "exact", "42"),
    ],
)
def test_answer_of_a_reply(reply, scorer, answer):
    found = answer_of_reply(reply, scorer)
    assert (found.status, found.text) == (AnswerStatus.OK, answer)


@pytest.mark.parametrize("reply", ["", "  \n", "<think>never ends \\boxed{3}", "</think>"])
def test_a_reply_without_an_answer(reply):
    assert answer_of_reply(reply, "math").status is AnswerStatus.MISSING


def test_unbalanced_boxes_are_passed_over():
    assert last_boxed(r"\boxed{1} and \boxed{2") == "1"
    assert last_boxed(r"\boxed{") is None
    assert last_boxed(r"} \boxed{1 \boxed{2}} {") == "2"
    assert last_boxed(r"\boxed{a} {\boxed{\frac{1}{2}} \boxed{") == r"\frac{1}{2}"


@pytest.mark.parametrize("unit", ["\\boxed{", "<think>", "</think><think>", "<think></think>", "answer is "])
def test_a_reply_that_repeats_itself_takes_time_by_its_length(unit):
    assert_linear(lambda length: answer_of_reply(unit * (length // len(unit)) + "x", "math"), 80_000)
