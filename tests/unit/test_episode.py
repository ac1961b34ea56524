"""The loop: exact tokens, budgets, and mistakes that stay the policy's."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.types import AnswerStatus, ExecResult, ExecStatus, StopReason, ToolFailure
from tests.unit.rig import CHAT, SUBMIT, bash, make_engine, request, run_one, say, write


async def test_an_episode_from_prompt_to_reward():
    rollout = await run_one([say(write("42\n")), say(SUBMIT)])
    trajectory = rollout.trajectory
    assert rollout.reward.value == 1.0
    assert trajectory.stop is StopReason.SUBMITTED
    assert trajectory.answer.text == "42\n"
    assert [len(turn.calls) for turn in trajectory.turns] == [1, 1]


async def test_the_sequence_is_what_was_sampled_and_observed():
    turns = [say(bash("ls"), text="let me look"), say(write("41")), say(SUBMIT)]
    seen = []

    def script(_, turn, ids):
        seen.append(tuple(ids))
        return turns[turn]

    async with make_engine(script) as engine:
        (rollout,) = await engine.run([request()])
    trajectory = rollout.trajectory
    whole = trajectory.prompt_ids + trajectory.completion_ids
    for turn, ids in enumerate(seen):
        assert whole[: len(ids)] == ids, "each prompt must be a prefix of the trained sequence"
        assert whole[len(ids) : len(ids) + len(turns[turn])] == turns[turn]
    sampled = [t for t, m in zip(trajectory.completion_ids, trajectory.action_mask, strict=True) if m]
    assert sampled == [token for turn in turns for token in turn]
    assert len(trajectory.completion_ids) == len(trajectory.action_mask) == len(trajectory.logprobs)
    assert whole[-1] in CHAT.ends.ids


async def test_several_calls_of_a_turn_run_in_order_and_stop_at_submit():
    commands = []
    backend = RecordingBackend(lambda command: commands.append(command) or exec_ok("x\n"))
    rollout = await run_one(
        [say(bash("one"), bash("two"), write("42"), SUBMIT, bash("three"))], backend=backend
    )
    assert commands == ["one", "two"]
    assert rollout.trajectory.stop is StopReason.SUBMITTED
    assert rollout.reward.value == 1.0


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        ("I think it is 42.", ToolFailure.NO_CALL),
        ('<tool_call>\n{"name": "execute_bash", "arg\n</tool_call>', ToolFailure.MALFORMED),
        ('<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>', ToolFailure.UNKNOWN_TOOL),
        (
            '<tool_call>\n{"name": "execute_bash", "arguments": {"command": 7}}\n</tool_call>',
            ToolFailure.BAD_ARGUMENTS,
        ),
    ],
)
async def test_mistakes_are_observations_and_the_episode_goes_on(said, failure):
    from sandbox_rl.training.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    mistake = (*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    rollout = await run_one([mistake, say(write("42")), say(SUBMIT)])
    first = rollout.trajectory.turns[0]
    assert first.observations[0].failure is failure
    assert first.action.token_ids == mistake, "a mistake is trained on as it was sampled"
    assert rollout.reward.value == 1.0


async def test_every_observation_says_how_many_steps_remain():
    rollout = await run_one([say(bash("true"))] * 3, episode={"max_turns": 3})
    texts = [CHAT.decode(turn.observation_ids) for turn in rollout.trajectory.turns]
    assert "Steps Remaining: 2" in texts[0]
    assert "Steps Remaining: 1" in texts[1]
    assert texts[2] == ""
    assert rollout.trajectory.stop is StopReason.MAX_TURNS


async def test_the_answer_counts_without_submit_unless_a_budget_ended_the_episode():
    turns = [say(write("42")), say(bash("true"))]
    zero = await run_one(turns, episode={"max_turns": 2})
    scored = await run_one(turns, episode={"max_turns": 2}, rollout={"overlong": "score"})
    assert (zero.reward.value, scored.reward.value) == (0.0, 1.0)
    assert zero.trajectory.answer.status is AnswerStatus.OK


async def test_the_token_budget_ends_an_episode_with_the_policy_s_own_tokens():
    turn = say(bash("true"))
    rollout = await run_one([turn] * 50, episode={"max_tokens": 400})
    trajectory = rollout.trajectory
    assert trajectory.stop is StopReason.MAX_TOKENS
    assert len(trajectory.completion_ids) <= 400
    assert trajectory.action_mask[-1] == 1


async def test_the_model_s_context_is_a_budget_too():
    turn = say(bash("true"))
    rollout = await run_one([turn] * 50, max_context=300)
    assert rollout.trajectory.stop is StopReason.MAX_TOKENS
    assert len(rollout.trajectory.prompt_ids) + len(rollout.trajectory.completion_ids) <= 300


async def test_a_turn_that_is_cut_is_closed_by_the_observation():
    long = say(bash("echo " + "x" * 500))
    rollout = await run_one([long, say(SUBMIT)], episode={"turn_tokens": 40})
    first = rollout.trajectory.turns[0]
    assert first.action.finish_reason == "length"
    assert first.action.token_ids == long[:40]
    assert first.observation_ids[0] in CHAT.ends.ids


async def test_a_slow_policy_is_a_timeout_with_reward_zero():
    policy = ScriptedPolicy(lambda *_: say(SUBMIT), delay_s=3600)  # nothing but the budget ends it
    async with make_engine(policy, episode={"timeout_s": 0.2}) as engine:
        (rollout,) = await engine.run([request()])
    assert rollout.trajectory.stop is StopReason.TIMEOUT
    assert rollout.reward.value == 0.0


async def test_slow_tools_use_up_the_episode_s_time():
    async def slow(command: str) -> ExecResult:
        await asyncio.sleep(0.15)
        return exec_ok()

    rollout = await run_one(
        [say(bash("a"), bash("b"), bash("c"))] * 9,
        backend=RecordingBackend(slow),
        episode={"timeout_s": 0.4},
    )
    assert rollout.trajectory.stop is StopReason.TIMEOUT
    assert rollout.reward.value == 0.0


async def test_a_sandbox_that_the_policy_killed_ends_the_episode_with_reward_zero():
    backend = RecordingBackend(lambda _: ExecResult(ExecStatus.SANDBOX_DEAD))
    rollout = await run_one([say(bash("kill -9 -1"))] * 3, backend=backend)
    assert rollout.trajectory.stop is StopReason.SANDBOX_DEAD
    assert rollout.reward.value == 0.0


async def test_gold_reaches_neither_prompt_nor_sandbox():
    backend = RecordingBackend()
    gold = "SECRET-GOLD"
    async with make_engine(lambda *_: say(SUBMIT), backend=backend) as engine:
        (rollout,) = await engine.run(
            [request(answer=gold, metadata={"solution": gold}, files={"a.txt": b"text"})]
        )
    assert gold not in CHAT.decode(rollout.trajectory.prompt_ids)
    (sandbox,) = backend.sandboxes
    assert gold not in repr(sandbox.files) + repr(sandbox.calls) + sandbox.id
    assert sandbox.files["/testbed/documents/a.txt"] == b"text"
