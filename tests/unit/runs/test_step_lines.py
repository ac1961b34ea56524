"""What is said of each update: to a person, to a program, to nobody."""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace

import pytest

from sandbox_rl.display import Silent
from sandbox_rl.runs.watching import StepLines, line_of
from sandbox_rl.terminal import JsonLines, Terminal

LOGS = {"loss": 0.1, "reward": 0.5, "solve_rate": 0.5, "turns": 6.25, "tokens/sampled": 1204.0}


def line(logs=LOGS, *, step=12, steps=150, rewards=(0.0, 0.25, 0.5), seconds=(9.0, 10.0, 60.0)):
    return line_of(step, steps, logs, rewards=deque(rewards), seconds=deque(seconds))


def test_a_line_says_how_far_how_good_and_how_long():
    assert line() == (
        "update  12/150  reward 0.500 ▁▃▅  solved 50%  turns 6.2  tokens 1,204  60 s  about 23 min left"
    )


def test_the_last_update_has_nothing_left_and_alarms_and_faults_stand_out():
    found = line(LOGS | {"alarms/mismatch": 2.0, "alarms/quiet": 0.0, "infra_fault_rate": 0.05}, step=150)
    assert "left" not in found
    assert found.endswith("ALARM mismatch")
    assert "faults 5%" in found


@pytest.mark.parametrize("rewards", [(), (3.0, -1.0), (0.0, 0.0)])
def test_any_rewards_can_be_drawn(rewards):
    assert ("reward" in line(rewards=rewards)) == bool(rewards)


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_an_update_of_which_nothing_is_known_still_has_its_line(capsys, nothing):
    run(Terminal(), logs=dict.fromkeys((*LOGS, "infra_fault_rate", "alarms/mismatch"), nothing))
    out = capsys.readouterr().out
    assert out.startswith("update 1/2  ")
    assert not {"reward", "solved", "turns", "faults", "ALARM"} & set(out.split())


def run(display, *, main=True, logs=LOGS):
    lines = StepLines(display)
    args = SimpleNamespace(logging_steps=1)
    for step in (1, 2):
        state = SimpleNamespace(is_world_process_zero=main, global_step=step, max_steps=2)
        lines.on_train_begin(args, state, None)
        lines.on_log(args, state, None, logs=logs)
        lines.on_log(args, state, None, logs={"eval_accuracy": 1.0})


def test_without_a_terminal_each_update_is_a_plain_line(capsys):
    run(Terminal())
    out = capsys.readouterr().out.splitlines()
    assert [text.split("  ")[0] for text in out] == ["update 1/2", "update 2/2"]


def test_a_program_gets_the_metrics(capsys):
    run(JsonLines())
    found = [json.loads(text)["update"] for text in capsys.readouterr().out.splitlines()]
    assert [(one["step"], one["steps"], one["turns"]) for one in found] == [(1, 2, 6.25), (2, 2, 6.25)]


def test_nobody_is_told_by_other_processes_or_where_it_is_to_be_quiet(capsys):
    run(Terminal(), main=False)
    run(Silent())
    assert capsys.readouterr().out == ""
