"""A journal as a cassette: the recorded policy and the recorded sandbox stand in for engine and computer."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.builders import build_backend, build_chat, build_engine
from sandbox_rl.cassette import Cassette, recordings
from sandbox_rl.cassette.cassette import base_id
from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import DataError
from sandbox_rl.journal import Journal
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.recorded import AnotherWay, RecordedPolicy
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.groups import group_requests
from tests.recorded_runs import bash, recipe_of, record, submit
from tests.smoke.support import TOKENIZER
from tests.unit.rig import ExactScoring

RANDOM = bash("cat /proc/sys/kernel/random/uuid > answer.txt; cat answer.txt")
SCRIPTS = {
    "sum": [
        [bash("echo 12 > answer.txt"), submit()],
        [RANDOM, "no call", (*bash("echo a"), *bash("echo b"), *submit())],
    ],
    "word": [[bash("sleep 9")] * 4, [bash("printf '\\377\\0' > answer.txt"), submit()]],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cassette")
    return record(
        recipe_of(directory, episode={"exec_timeout_s": 1.0, "max_turns": 4}), SCRIPTS.items(), attempt=2
    )


def play(run, policy=None, *, journal=None, **overrides):
    """The episodes of the run once more, without a computer; the rollouts by their ids."""
    told = {"sandbox": f"{{type: recorded, journal: {journal or run}}}"} | overrides
    recipe = load_recipe(run / "recipe.yaml", [f"{key}={value}" for key, value in told.items()])
    tasks = {task.id: task for task in load_tasks(recipe.data, split="train", base_dir=run)}
    requests = [r for n, name in enumerate(SCRIPTS) for r in group_requests(tasks[name], n, seed=0, size=2)]
    chat = build_chat(recipe, TOKENIZER)
    engine = build_engine(
        recipe,
        base_dir=run,
        agent=TokenAgent(policy or RecordedPolicy(recordings(run)), chat),
        sampling=Sampling(),
        backend=build_backend(recipe),
    )
    engine.scoring = ExactScoring()

    async def go():
        async with engine:
            return {r.id: rollout for r, rollout in zip(requests, await engine.run(requests), strict=True)}

    return asyncio.run(go())


def test_episodes_come_out_as_they_were_without_engine_and_sandbox(run):
    found = play(run)
    with Cassette(run) as cassette:
        assert len(found) == len(cassette.phases) == 4
        for id, rollout in found.items():
            recorded, now = cassette.trajectory(id), rollout.trajectory
            assert base_id(recorded.episode_id) == id, "whatever its attempt"
            assert (now.prompt_ids, now.completion_ids) == (recorded.prompt_ids, recorded.completion_ids)
            assert (now.action_mask, now.logprobs) == (recorded.action_mask, recorded.logprobs)
            assert (now.stop, now.answer) == (recorded.stop, recorded.answer)
            assert [t.observations for t in now.turns] == [t.observations for t in recorded.turns]


def test_a_call_that_was_not_recorded_is_reported(run):
    chat = build_chat(load_recipe(run / "recipe.yaml"), TOKENIZER)
    other = ScriptedPolicy(lambda id, turn, ids: chat.render_call("", bash("echo 13 > answer.txt")))
    with pytest.raises(
        DataError, match=r"turn 1: call 'execute_bash .*echo 13.* was not recorded there, exp"
    ):
        play(run, other)
    early = ScriptedPolicy(lambda id, turn, ids: chat.render_call("", submit()))
    with pytest.raises(DataError, match=r"'submit \{\}' was not recorded there"):
        play(run, early)


def test_an_episode_that_goes_another_way_is_reported(run):
    with pytest.raises(
        AnotherWay, match=r"turn 1: what comes before it differs from the record from token \d"
    ):
        play(run, **{"tools": "[execute_bash]"})
    with pytest.raises(AnotherWay, match="the budgets leave 3"):
        play(run, **{"episode.turn_tokens": 3})
    with pytest.raises(DataError, match=r"ended after 1 of \d recorded calls|what comes before it differs"):
        play(run, **{"episode.max_turns": 1})


def test_an_episode_that_is_not_recorded_is_reported(run, tmp_path):
    with Journal(tmp_path / "journal"), pytest.raises(DataError, match="'train-000000-0000' is not recorded"):
        play(run, journal=tmp_path)
    with pytest.raises(DataError, match="there is no journal"):
        play(run, journal=tmp_path / "nowhere")


def test_what_a_resumed_run_has_replaced_is_not_played(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with Journal(copy / "journal") as journal:
        journal.replaced(["train-000000-0000-r2"])
    with Cassette(copy) as cassette, pytest.raises(DataError, match="it was replaced"):
        cassette.trajectory("train-000000-0000-r2")
