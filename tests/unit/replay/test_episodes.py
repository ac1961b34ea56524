"""An episode of a run is played again in a fresh sandbox, and every difference is found."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sandbox_rl.cassette import Cassette
from sandbox_rl.cli import whole_app
from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.replay.episodes import differences, replay_episode
from sandbox_rl.view.api import answer
from sandbox_rl.view.opened import open_run
from tests.recorded_runs import bash, recipe_of, record, submit

EPISODE = "train-000000-0000"
EDITS = "train-000002-0000"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = recipe_of(tmp_path_factory.mktemp("replayed"), rollout={"overlong": "zero"})
    sums = bash("echo $((5 + 7)) | tee answer.txt; ls nowhere")
    work = [sums, "thinking", bash("cat answer.txt"), submit()]
    clock = [bash("cat /proc/sys/kernel/random/uuid > answer.txt; cat answer.txt"), submit()]
    edits = [
        bash("printf 'one\\ntwo\\n' > answer.txt; printf '\\000\\377' > raw"),
        *(bash("sed -i s/two/2/ answer.txt"), bash("rm raw"), submit()),
    ]
    words = [[bash("echo a dog > answer.txt")] * 4]
    return record(recipe, [("sum", [work, clock]), ("word", words), ("sum", [edits])])


def tree(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_what_comes_out_the_same_is_reported_in_one_line_and_nothing_of_the_run_is_touched(run):
    before = tree(run)
    done = CliRunner().invoke(whole_app(), ["replay", str(run), EPISODE])
    assert (done.exit_code, done.output) == (0, f"{EPISODE}: the same again, 4 turns, reward 1.0\n")
    assert tree(run) == before


def test_the_files_that_each_turn_changed_are_written_when_somebody_asks(run):
    done = CliRunner().invoke(whole_app(), ["replay", str(run), EDITS, "--files"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (run / "files").iterdir()] == [f"{EDITS}.json"]
    turns = json.loads((run / "files" / f"{EDITS}.json").read_text())["turns"]
    assert [[(c["path"], c["what"], c["diff"].split("\n")[1:]) for c in turn] for turn in turns] == [
        [("answer.txt", "added", ["+ one", "+ two"]), ("raw", "added", [])],
        [("answer.txt", "changed", ["  one", "- two", "+ 2"])],
        [("raw", "removed", [])],
        [],
    ]
    with open_run(run, whole=True) as seen:
        shown = answer([seen], "episode", {"id": EDITS})["turns"]
        assert [turn["files"] for turn in shown] == turns
        assert {turn["files"] for turn in answer([seen], "episode", {"id": EPISODE})["turns"]} == {None}


def test_the_first_difference_is_shown(run):
    done = CliRunner().invoke(whole_app(), ["replay", str(run), "train-000000-0001"])
    assert done.exit_code == 1
    assert "train-000000-0001: differs first in turn 1, observation 1, text\n  recorded: '" in done.output
    assert "more after it" in done.output
    whats = [(d.turn, d.what) for d in replay_episode(run, "train-000000-0001").differences]
    assert whats == [(1, "observation 1, text"), (1, "observation_ids"), (None, "answer")]


def with_value(record, path, value):
    """A copy of a record in which something is another way."""
    copy = json.loads(json.dumps(record))
    place = copy
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (["prompt_ids", 5], 9, (None, "prompt_ids")),
        (["turns", 1, "observations", 0, "failure"], "timeout", (2, "observation 1, failure")),
        (["turns", 0, "observations", 0, "exit_code"], None, (1, "observation 1, exit_code")),
        (["turns", 2, "observation_ids"], [], (3, "observation_ids")),
        (["turns", 2, "calls"], [], (3, "calls")),
        (["turns", 3, "token_ids", 0], 1, (4, "token_ids")),
        (["turns", 3, "observations", 0, "submitted"], False, (4, "observation 1, submitted")),
        (["stop"], "max_turns", (None, "stop")),
        (["answer", "text"], "13\n", (None, "answer")),
        (["reward"], None, (None, "reward")),
        (["masked"], True, (None, "masked")),
        (["turns", 0, "observations", 0, "seconds"], 1e9, None),
        (["seconds"], 1e9, None),
    ],
)
def test_everything_is_compared_exactly_but_times(run, path, value, found):
    with Cassette(run) as cassette:
        record = cassette.record(EPISODE)
    both = list(differences(record, with_value(record, path, value)))
    assert [(d.turn, d.what) for d in both] == ([] if found is None else [found])
    assert list(differences(record, record)) == []


def test_turns_that_are_missing_are_a_difference(run):
    with Cassette(run) as cassette:
        record = cassette.record(EPISODE)
    shorter = record | {"turns": record["turns"][:2]}
    assert [d.what for d in differences(record, shorter)] == ["number of turns"]


def test_an_episode_whose_budget_ended_it_ends_so_again(run):
    assert replay_episode(run, "train-000001-0000").differences == ()
    *_, longer = replay_episode(run, "train-000001-0000", ["episode.max_turns=9"]).differences
    assert (longer.turn, longer.what) == (None, "the end of the episode")


def test_other_settings_of_the_run_can_be_tried(run):
    done = replay_episode(run, EPISODE, ["tools=[execute_bash]"])
    assert done.differences[0].what == "prompt_ids"
    assert "observation 1, submitted" in [d.what for d in done.differences if d.turn == 4]
    last = {d.what: (d.recorded, d.replayed) for d in done.differences[-3:]}
    assert last["stop"] == ("'submitted'", "'max_turns'")
    assert last["reward"] == ("1.0", "0.0"), "what its budget ended is worth nothing"


def test_what_cannot_be_played_is_reported(run, tmp_path):
    with pytest.raises(ConfigError, match="no run here"):
        replay_episode(tmp_path, EPISODE)
    with pytest.raises(
        DataError, match=r"episode 'x' is not recorded \(no such episode\).*such as train-0000"
    ):
        replay_episode(run, "x")
