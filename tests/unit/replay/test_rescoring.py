"""A run scored by other rules: who would have got another reward, advantage or sign; faults stay faults."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sandbox_rl.cli import whole_app
from sandbox_rl.display import Silent
from sandbox_rl.errors import ConfigError
from sandbox_rl.replay.rescoring import rescore


@pytest.fixture
def run(scored_run):
    return scored_run


def test_other_scorers_show_whose_reward_and_gradient_would_have_been_others(run):
    found = {e.episode: e for e in rescore(run, ["reward.scorer=numeric"], display=Silent()).episodes}
    assert {id: e.new_reward for id, e in found.items() if e.new_reward != e.reward} == {
        "train-000000-0001": 1.0,
        "train-000002-0000": 1.0,
        "train-000002-0001": 1.0,
        "sandbox-00000-0": 1.0,
    }
    first = [found[f"train-000000-000{i}"] for i in range(3)]
    assert [e.advantage for e in first] == [1.0, -0.5, -0.5], "r minus the mean of the others"
    assert [e.new_advantage for e in first] == [0.5, 0.5, -1.0]
    assert [e.turned for e in first] == [False, True, False]
    assert [(e.advantage, e.new_advantage) for e in (found["train-000002-0000"],)] == [(0.0, 0.0)]
    assert found["sandbox-00000-0"].advantage is None, "no gradient of an evaluation"


def test_a_fault_has_no_reward_by_any_rule_and_is_out_of_the_baseline(run):
    found = {e.episode: e for e in rescore(run, ["rollout.overlong=score"], display=Silent()).episodes}
    fault = found["train-000001-0002"]
    assert (fault.new_reward, fault.advantage, fault.new_advantage) == (None, None, None)
    assert found["train-000001-0003"].new_reward == 1.0, "what a budget is worth is a rule, too"
    assert found["train-000001-0000"].advantage == 1.0
    assert found["train-000001-0000"].new_advantage == 0.5, "1 minus the mean of 0 and 1"


def test_by_its_own_rules_nothing_changes(run):
    assert rescore(run, [], display=Silent()).changed == []


def test_the_table_and_the_first_episodes_are_shown_and_all_of_them_written_beside_the_run(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    arguments = ["replay", str(run), "--rescore", "reward.scorer=numeric"]
    done = CliRunner().invoke(whole_app(), arguments)
    assert done.exit_code == 0, done.output
    assert "train-000000-0001: reward 0.000 -> 1.000, advantage -0.500 -> 0.500" in done.output
    written = json.loads((run.parent / "r-rescored-1.json").read_text())
    assert written["overrides"] == ["reward.scorer=numeric"]
    (row,) = written["by_domain"]
    assert (row["domain"], row["episodes"], row["not judged"], row["now not judged"]) == ("general", 10, 1, 1)
    assert (row["other reward"], row["other advantage"], row["other sign"]) == (4, 3, 1)
    assert len(written["changed"]) == 6, "four rewards, and two whose group's mean is another"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    again = CliRunner().invoke(whole_app(), [*arguments, "-o", str(run.parent / "r-rescored-1.json")])
    assert isinstance(again.exception, ConfigError)
    assert "exists" in str(again.exception)


def test_what_changes_no_score_is_refused(run):
    with pytest.raises(ConfigError, match=r"'grpo.max_steps=3': it changes no score"):
        rescore(run, ["grpo.max_steps=3"], display=Silent())


def test_the_rewards_of_another_recipe_can_be_tried(run, tmp_path):
    (tmp_path / "other.yaml").write_text("reward: {scorer: numeric}\n")
    output = tmp_path / "x.json"
    done = CliRunner().invoke(
        whole_app(), ["replay", str(run), "--rescore", str(tmp_path / "other.yaml"), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(output.read_text())["by_domain"][0]["other reward"] == 4
