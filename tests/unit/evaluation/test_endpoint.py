"""Episodes over a real local HTTP endpoint, well and ill behaved."""

from __future__ import annotations

import json

import pytest

from sandbox_rl.agents.base import EpisodeRequest, EpisodeSettings
from sandbox_rl.agents.messages import MessageAgent
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.errors import ConfigError, EngineFault, InfraFault
from sandbox_rl.evaluation.plan import EvaluationPlan, Part
from sandbox_rl.evaluation.results import results_of_journal
from sandbox_rl.evaluation.run import run_evaluation
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.journal import Journal, read_journal, rollout_record, trajectory_from_record
from sandbox_rl.policies.base import Sampling, TurnSampling
from sandbox_rl.policies.fake_endpoint import FakeEndpoint, Raw, said
from sandbox_rl.policies.openai_chat import ChatClient, ContextFull, EndpointSettings
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.types import MalformedCall, Message, StopReason, Task, ToolCall
from tests.unit.rig import CHAT, TOOLBOX, ExactScoring

WRITE = ("str_replace_editor", {"command": "create", "path": "/testbed/answer.txt", "file_text": "42"})
SUBMIT = ("submit", {})
SAMPLING = TurnSampling(max_tokens=100, seed=2**62)
TASK = Task("t", "What is 6*7?", "42")


def client(endpoint, **settings):
    fields = {"model": "m", "retries": 2, "backoff_s": 0.01, "request_timeout_s": 60, **settings}
    return ChatClient(EndpointSettings(base_url=endpoint.base_url, **fields))


def common(**changes):
    return {
        "scoring": changes.pop("scoring", ExactScoring()),
        "render": lambda task: (Message("user", task.prompt),),
        "episode": EpisodeSettings(timeout_s=60, **changes),
        "toolbox": TOOLBOX,
        "sampling": Sampling(),
        "settings": RolloutSettings(retries=1, backoff_s=0.01, concurrency=8, overlong="score"),
    }


async def ask(script, *, timeout=60.0, tools=(), **settings):
    async with FakeEndpoint(script) as endpoint, client(endpoint, **settings) as made:
        reply = await made.reply([{"role": "user", "content": "hi"}], tools, SAMPLING, timeout=timeout)
        return reply, endpoint


async def episode(script, *, backend=None, retries=2, **changes):
    async with FakeEndpoint(script) as endpoint:
        engine = RolloutEngine(
            agent=MessageAgent(client(endpoint, retries=retries)),
            backend=backend or RecordingBackend(),
            **common(**changes),
        )
        async with engine:
            (rollout,) = await engine.run([EpisodeRequest("e", TASK, 5)])
        return rollout, endpoint


async def test_an_episode_by_tool_calls():
    turns = [said("Let me write.", [WRITE], usage=(50, 10)), said("", [SUBMIT], usage=(75, 4))]
    rollout, endpoint = await episode(lambda body, n: turns[n])
    t = rollout.trajectory
    assert (t.stop, rollout.reward.value, len(t.turns)) == (StopReason.SUBMITTED, 1.0, 2)
    assert t.chat.usage == {"prompt": 50, "sampled": 14, "observed": 15}
    assert t.turns[0].calls == (ToolCall(*WRITE),)
    assert trajectory_from_record(json.loads(json.dumps(rollout_record(rollout)))) == t
    first, second = endpoint.requests
    assert [tool["function"]["name"] for tool in first["tools"]][-1] == "submit"
    assert first["seed"] != second["seed"]
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "tool"]
    assert second["messages"][1]["tool_calls"][0]["id"] == second["messages"][2]["tool_call_id"] == "id-0"
    assert "Steps Remaining: 99" in second["messages"][2]["content"]


async def test_equal_seeds_give_equal_requests():
    turns = [said("", [WRITE]), said("", [SUBMIT])]
    _, one = await episode(lambda body, n: turns[n])
    _, two = await episode(lambda body, n: turns[n])
    assert one.requests == two.requests


async def test_missing_call_ids_are_made_up_and_differ():
    turns = [said("", [WRITE, ("execute_bash", {"command": "ls"})], ids=False), said("", [SUBMIT], ids=False)]
    rollout, endpoint = await episode(lambda body, n: turns[n])
    assert rollout.reward.value == 1.0
    messages = endpoint.requests[1]["messages"]
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert len(set(ids)) == 2
    assert ids == [m["tool_call_id"] for m in messages[2:]]


async def test_calls_after_submit_are_not_run():
    backend = RecordingBackend()
    calls = [WRITE, SUBMIT, ("execute_bash", {"command": "rm answer.txt"})]
    rollout, _ = await episode(lambda body, n: said("", calls), backend=backend)
    assert rollout.reward.value == 1.0
    assert backend.sandboxes[0].commands == ()


@pytest.mark.parametrize(
    "arguments", ['{"command": ', "[1]", '{"command": NaN}', '{"command": 1e999}', '"x"']
)
async def test_malformed_arguments_are_the_policys_mistake(arguments, tmp_path):
    turns = [said("", [("execute_bash", arguments)]), said("", [WRITE, SUBMIT])]
    rollout, endpoint = await episode(lambda body, n: turns[n])
    assert isinstance(rollout.trajectory.turns[0].calls[0], MalformedCall)
    assert rollout.reward.value == 1.0
    echoed = endpoint.requests[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(echoed) == {}


async def test_a_turn_without_a_call_is_answered_by_a_user_message():
    turns = [said("Hm."), said("\ud800", [WRITE, SUBMIT])]
    rollout, endpoint = await episode(lambda body, n: turns[n])
    assert rollout.reward.value == 1.0
    last = endpoint.requests[1]["messages"][-1]
    assert last["role"] == "user"
    assert "no tool call" in last["content"]


async def test_budgets():
    rollout, _ = await episode(lambda body, n: said("Hm."), max_turns=3)
    assert rollout.trajectory.stop is StopReason.MAX_TURNS
    rollout, _ = await episode(lambda body, n: said("Hm.", usage=(10 + 60 * n, 50)), max_tokens=100)
    assert rollout.trajectory.stop is StopReason.MAX_TOKENS
    rollout, _ = await episode(lambda body, n: said("Hm.", usage=None), max_tokens=20)
    assert rollout.trajectory.stop is StopReason.MAX_TOKENS
    full = Raw(b'{"error": "This model\'s maximum context length is 8192 tokens"}', 400)
    rollout, _ = await episode(lambda body, n: full if n else said("", [WRITE]))
    assert (rollout.trajectory.stop, rollout.reward.value) == (StopReason.MAX_TOKENS, 1.0)


NONSENSE = [
    Raw(b"<html>busy</html>"),
    Raw(b""),
    Raw(b'{"choices": []}'),
    Raw(b'{"choices": [{"message": null}]}'),
    Raw(b'{"choices": [{"message": {"content": 7}}]}'),
    Raw(b"[" * 100_000),
    Raw(b'data: {"choices": [{"delta": {"content": "4'),
    Raw(b'{"choices": [{"message"', promised=1_000, hang_up=True),
    Raw(hang_up=True),
    Raw(b"overloaded", 503),
    Raw(b"slow down", 429, {"Retry-After": "0"}),
    Raw(b"\xff\xfe", 500),
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
async def test_nonsense_is_asked_again(nonsense):
    reply, endpoint = await ask(lambda body, n: said("ok") if n == 2 else nonsense)
    assert reply.text == "ok"
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
async def test_lasting_nonsense_is_an_engine_fault_within_the_retries(nonsense):
    with pytest.raises(EngineFault, match="3 tries failed"):
        await ask(lambda body, n: nonsense)


async def test_a_hanging_endpoint_is_retried_and_bounded():
    with pytest.raises(EngineFault, match="Timeout"):
        await ask(lambda body, n: said("late", delay_s=3600), request_timeout_s=0.1)


async def test_an_episode_that_runs_out_of_time_is_no_fault():
    with pytest.raises(TimeoutError):
        await ask(lambda body, n: said("late", delay_s=30), timeout=0.2)


async def test_retries_stop_at_the_episodes_deadline():
    with pytest.raises(EngineFault):
        await ask(lambda body, n: Raw(b"", 503), timeout=0.3, retries=1_000_000, backoff_s=0.05)


async def test_rejected_tools_say_how_to_fix_it():
    refusal = Raw(b'{"error": "auto tool choice requires --enable-auto-tool-choice"}', 400)
    with pytest.raises(EngineFault, match="--tool-call-parser"):
        await ask(lambda body, n: refusal, tools=TOOLBOX.schemas)
    with pytest.raises(InfraFault, match="all 1 episodes failed"):
        await episode(lambda body, n: refusal)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_no_retry_fixes_is_the_users(status):
    with pytest.raises(ConfigError, match="model 'm'"):
        await ask(lambda body, n: Raw(b"no", status))


async def test_a_full_context_is_its_own_outcome():
    with pytest.raises(ContextFull):
        await ask(lambda body, n: Raw(b'{"code": "context_length_exceeded"}', 400))


async def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "abc")
    _, endpoint = await ask(lambda body, n: said("ok"), api_key_env="SOME_KEY")
    assert "authorization: bearer abc" in endpoint.headers[0].lower()


async def test_a_fault_in_the_middle_is_tried_in_a_new_sandbox():
    backend = RecordingBackend()
    answers = {0: said("", [WRITE]), 1: Raw(b"", 400), 2: said("", [WRITE]), 3: said("", [SUBMIT])}
    rollout, _ = await episode(lambda body, n: answers[n], backend=backend)
    assert rollout.reward.value == 1.0
    assert len(backend.sandboxes) == 2
    assert not backend.alive


async def test_sandbox_against_plain_over_one_endpoint(tmp_path):
    """The comparison whole: tools only where there is a sandbox, one journal, a paired interval."""

    def script(body, n):
        if "tools" in body:
            return said("", [WRITE, SUBMIT])
        return said("I think\n\nAnswer: 42" if "even" in body["messages"][0]["content"] else "41")

    tasks = [Task(f"t{i}", "even" if i % 2 == 0 else "odd", "42") for i in range(20)]
    plan = EvaluationPlan("both", "m", (Part("halves", tasks, 2),), ("sandbox", "plain"), 0, Sampling())
    journal = tmp_path / "journal"
    async with FakeEndpoint(script) as endpoint:
        engines = {
            mode: RolloutEngine(agent=MessageAgent(client(endpoint)), backend=backend, **common())
            for mode, backend in (("sandbox", RecordingBackend()), ("plain", None))
        }
        with Journal(journal) as opened:
            await run_evaluation(plan, engines, opened)
        results = results_of_journal(plan, journal)
    assert results.modes["sandbox"].accuracy.value == 1.0
    assert results.modes["plain"].accuracy.value == 0.5
    assert results.comparison.value == 0.5
    assert 0 < results.comparison.low < 0.5 < results.comparison.high < 1
    assert results.comparison_by_part == {"halves": results.comparison}
    assert results.modes["plain"].tasks["t1"] == 0.0
    records = list(read_journal(journal))
    assert len(records) == 80
    assert all(record["messages"][-1]["role"] in ("assistant", "tool") for record in records)
    assert type(results).from_json(json.loads(json.dumps(results.to_json()))) == results


async def test_plain_mode_of_a_token_policy():
    turns = {"right": "Let me see.\n42", "wrong": "41", "cut": "42" * 200}

    def script(episode_id, turn, ids):
        return CHAT.render_call(turns[episode_id], ())

    engine = RolloutEngine(
        agent=TokenAgent(ScriptedPolicy(script), CHAT), backend=None, **common(max_tokens=120)
    )
    async with engine:
        rollouts = await engine.run([EpisodeRequest(name, TASK, 0) for name in turns])
    assert [r.reward.value for r in rollouts] == [1.0, 0.0, 0.0]
    assert [r.trajectory.stop for r in rollouts] == [
        StopReason.SUBMITTED,
        StopReason.SUBMITTED,
        StopReason.MAX_TOKENS,
    ]
    assert all(len(r.trajectory.prompt_ids) > 0 for r in rollouts)
