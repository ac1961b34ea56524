"""Conversations in fake sandboxes: the ids, the messages, what is shown, and what is left after each end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from sandbox_rl.agents.base import EpisodeRequest, EpisodeSettings
from sandbox_rl.agents.messages import MessageAgent
from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.assistant.conversation import converse
from sandbox_rl.assistant.settings import AssistantSettings, load_assistant
from sandbox_rl.builders import build_chat, build_engine
from sandbox_rl.config.load import load_recipe
from sandbox_rl.fakes import RecordingBackend
from sandbox_rl.policies.base import Sampling
from sandbox_rl.policies.fake_endpoint import FakeEndpoint, Raw, said
from sandbox_rl.policies.openai_chat import ChatClient, EndpointSettings
from sandbox_rl.policies.scripted import ScriptedPolicy
from sandbox_rl.training.tiny import tiny_tokenizer
from sandbox_rl.types import Action, AnswerStatus, Message, StopReason, Task, ToolFailure
from tests.unit.assistant.viewer import Notes
from tests.unit.rig import CHAT, SUBMIT, TOOLBOX, bash, make_engine, say, write

TASK = Task("assistant", "What is 6*7?", answer="", files={"a.txt": b"in"})
PROMPT = (Message("user", TASK.prompt),)
NEVER = say(bash("true"))
WRITE = ("str_replace_editor", {"command": "create", "path": "/testbed/answer.txt", "file_text": "42"})


def typed(*lines):
    """A user who says these lines and then nothing more."""
    waiting = list(lines)

    async def next_message():
        return waiting.pop(0) if waiting else None

    return next_message


async def talk_to(agent, lines, *, backend=None, max_output_bytes=1 << 20, messages=PROMPT, **episode):
    notes = Notes()
    done = await converse(
        EpisodeRequest("assistant", TASK, seed=3),
        messages,
        backend=backend if backend is not None else RecordingBackend(),
        agent=agent,
        toolbox=TOOLBOX,
        viewer=notes,
        next_message=None if lines is None else typed(*lines),
        limits=EpisodeSettings(**{"timeout_s": 20, **episode}),
        sampling=Sampling(),
        max_output_bytes=max_output_bytes,
    )
    return done, notes.seen


async def tokens(turns, lines=None, **options):
    policy = (
        turns if isinstance(turns, ScriptedPolicy) else ScriptedPolicy(lambda _, turn, ids: list(turns)[turn])
    )
    return await talk_to(TokenAgent(policy, CHAT), lines, **options)


async def endpoint(script, lines=None, **episode):
    async with FakeEndpoint(script) as server:
        settings = EndpointSettings(base_url=server.base_url, model="m", retries=0, backoff_s=0.01)
        done, seen = await talk_to(MessageAgent(ChatClient(settings)), lines, **episode)
        return done, seen, server.requests


async def test_one_question_is_an_episode_as_in_training():
    turns = [say(bash("ls"), text="Look."), say(), say(write("42"), SUBMIT)]
    done, seen = await tokens(turns)
    async with make_engine(lambda _, turn, ids: turns[turn]) as engine:
        (rollout,) = await engine.run([EpisodeRequest("e", TASK, seed=3)])
    trained, mine = rollout.trajectory, done.trajectory
    assert (mine.prompt_ids, mine.completion_ids) == (trained.prompt_ids, trained.completion_ids)
    assert (mine.action_mask, mine.logprobs) == (trained.action_mask, trained.logprobs)
    assert [(t.calls, t.observations) for t in mine.turns] == [
        (t.calls, t.observations) for t in trained.turns
    ]
    assert (mine.stop, mine.answer) == (StopReason.SUBMITTED, trained.answer)
    assert done.files == {"answer.txt": b"42"}
    assert (done.notes, done.interrupted) == ((), False)
    assert seen == [
        "opened recording 1",
        *("thinking", "said |Look.", "calling execute_bash", "observed execute_bash"),
        *("thinking", "said |", "observed no_call"),
        *("thinking", "said |", "calling str_replace_editor", "observed str_replace_editor"),
        *("calling submit", "observed submit"),
        "ended submitted 42",
    ]


async def test_a_conversation_is_one_sequence_in_one_sandbox():
    turns = [say(write("42"), SUBMIT), say(text="Because."), say(bash("ls")), say(SUBMIT)]
    asked = []

    def script(_, turn, ids):
        asked.append(tuple(ids))
        return turns[turn]

    backend = RecordingBackend()
    done, seen = await tokens(ScriptedPolicy(script), ["Why?", "Look again."], backend=backend)
    t = done.trajectory
    assert len(backend.sandboxes) == 1
    assert not backend.alive
    whole = t.prompt_ids + t.completion_ids
    for ids, turn in zip(asked, turns, strict=True):
        assert whole[: len(ids) + len(turn)] == ids + tuple(turn)
    assert t.prompt_ids == CHAT.render_prompt(PROMPT)
    assert [len(turn.observation_ids) > 0 for turn in t.turns] == [True, True, True, False]
    first, second = (CHAT.decode(turn.observation_ids) for turn in t.turns[:2])
    assert first.count("<tool_response>") == 2
    assert first.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    assert second == "\n<|im_start|>user\nLook again.<|im_end|>\n<|im_start|>assistant\n"
    assert [line for line in seen if line.startswith("ended")] == [
        "ended submitted 42",
        "ended submitted None",
        "ended submitted 42",
    ]
    assert t.turns[1].observations[0].failure is ToolFailure.NO_CALL


async def test_the_user_may_go_on_after_a_budget_has_ended():
    turns = [NEVER, NEVER, say(write("1"), SUBMIT)]
    done, seen = await tokens(turns, ["Go on."], max_turns=2)
    assert [line for line in seen if line.startswith("ended")] == [
        "ended max_turns None",
        "ended submitted 1",
    ]
    shown = CHAT.decode(done.trajectory.turns[1].observation_ids)
    assert "<tool_response>" in shown
    assert shown.index("</tool_response>") < shown.index("Go on.")


@pytest.mark.parametrize("closed", [True, False])
async def test_a_turn_that_was_cut_off_is_closed_before_the_user_speaks(closed):
    """Where the policy ended its turn itself, its end is not written twice."""
    words = say(text="Words.")
    turns = [words if closed else words[:-1], say(text="Bye.")]
    done, _ = await tokens(turns, ["And?"])
    ids = done.trajectory.prompt_ids + done.trajectory.completion_ids
    assert CHAT.decode(ids).count("Words.<|im_end|>\n<|im_start|>user\nAnd?") == 1


class Slow:
    """Plays turns; None is one that takes longer than any episode."""

    max_context = 100_000

    def __init__(self, *turns):
        self._turns = list(turns)
        self.asked = []

    @asynccontextmanager
    async def session(self, episode_id):
        yield self

    async def act(self, prompt_ids, sampling, *, timeout):
        self.asked.append(tuple(prompt_ids))
        turn = self._turns.pop(0)
        if turn is None:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(60)
        return Action(turn, (0.0,) * len(turn), "stop")

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        return None


@pytest.mark.parametrize("before", [(), (NEVER,)], ids=["at once", "after a turn"])
async def test_the_user_may_go_on_after_a_turn_that_took_too_long(before):
    """Nothing was sampled between what the policy was asked and what the user said."""
    policy = Slow(*before, None, say(SUBMIT))
    done, seen = await talk_to(TokenAgent(policy, CHAT), ["Go on."], timeout_s=3.0)
    late, last = policy.asked[-2:]
    assert last[: len(late)] == late
    assert CHAT.decode(last[len(late) :]).count("Go on.") == 1
    t = done.trajectory
    assert t.prompt_ids + t.completion_ids == (*last, *say(SUBMIT))
    assert len(t.turns) == len(before) + 1
    assert [line for line in seen if line.startswith("ended")] == [
        "ended timeout None",
        "ended submitted None",
    ]


async def test_a_conversation_with_an_endpoint_sends_what_was_said():
    replies = [said("", [WRITE, ("submit", {})]), said("Because."), said("", [("submit", {})])]
    done, seen, requests = await endpoint(lambda body, n: replies[n], ["Why?", "Sure?"])
    assert [[m["role"] for m in r["messages"]] for r in requests] == [
        ["user"],
        ["user", "assistant", "tool", "tool", "user"],
        ["user", "assistant", "tool", "tool", "user", "assistant", "user"],
    ]
    assert [m["content"] for m in requests[2]["messages"] if m["role"] == "user"] == [
        TASK.prompt,
        "Why?",
        "Sure?",
    ]
    assert requests[0]["seed"] != requests[1]["seed"]
    assert len(done.trajectory.chat.messages) == 9
    assert done.trajectory.chat.usage == {"prompt": 100, "sampled": 30, "observed": 0}
    assert [line for line in seen if line.startswith("ended")] == [
        "ended submitted 42",
        "ended submitted None",
        "ended submitted 42",
    ]


async def test_a_fault_keeps_what_there_is():
    replies = [said("", [WRITE]), Raw(b"down", 500)]
    done, _, _ = await endpoint(lambda body, n: replies[n])
    assert done.trajectory.stop is StopReason.INFRA_FAULT
    assert "HTTP 500" in done.trajectory.fault
    assert len(done.trajectory.turns) == 1
    assert done.trajectory.answer.text == "42"
    assert done.files == {"answer.txt": b"42"}
    assert len(done.trajectory.chat.messages) == 3


async def test_an_interrupt_in_the_middle_of_a_command_keeps_what_there_is():
    running = asyncio.Event()

    async def slow(command):
        running.set()
        await asyncio.sleep(60)

    backend = RecordingBackend(slow)
    turns = [say(write("42")), say(bash("sleep 60"), text="Wait.")]
    work = asyncio.create_task(tokens(turns, backend=backend))
    await asyncio.wait_for(running.wait(), 60)
    work.cancel()
    done, _ = await work
    assert done.interrupted
    assert (done.trajectory.stop, done.trajectory.fault) == (StopReason.INFRA_FAULT, "interrupted")
    assert [len(turn.observations) for turn in done.trajectory.turns] == [1, 0]
    assert done.files == {"answer.txt": b"42"}
    assert not backend.alive


async def test_results_that_are_too_large_are_left_and_said_but_for_the_answer():
    done, _ = await tokens([say(write("42"), SUBMIT)], max_output_bytes=1)
    assert "exceed" in done.notes[0]
    assert done.files == {"answer.txt": b"42"}


async def test_a_sandbox_that_dies_ends_it():
    backend = RecordingBackend()

    def script(_, turn, ids):
        backend.sandboxes[0].dead = True
        return NEVER

    done, seen = await tokens(ScriptedPolicy(script), ["more"], backend=backend)
    assert done.trajectory.stop is StopReason.SANDBOX_DEAD
    assert done.notes == ("The sandbox is dead: its files are lost.",)
    assert done.trajectory.answer.status is AnswerStatus.MISSING
    assert seen[-1] == "ended sandbox_dead None"


RECIPE = """
data: {sources: [{type: reasoning_gym, dataset: chain_sum, size: 20}]}
model: {path: nowhere}
prompts: [mine]
episode: {exec_timeout_s: 7}
"""


@pytest.mark.parametrize("own_prompts", [False, True])
async def test_training_evaluation_and_assistant_ask_alike(tmp_path, own_prompts):
    """Training and evaluation ask through the rollout engine; an endpoint gets the same messages."""
    from sandbox_rl.assistant.assist import assistant_prompt

    (tmp_path / "mine").mkdir()
    if own_prompts:
        (tmp_path / "mine" / "general.yaml").write_text(
            "system: Be brief.\ninstance: 'Do {problem_statement} in {working_dir}.'\n"
        )
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe, tokenizer = load_recipe(path), tiny_tokenizer()
    settings = load_assistant(path, ())
    task = Task("assistant", "Sum <|im_end|> {input_dir} of a.txt?", answer="", files={"a.txt": b"1"})

    trained_chat = build_chat(recipe, tokenizer)
    engine = build_engine(
        recipe,
        base_dir=tmp_path,
        agent=TokenAgent(ScriptedPolicy(lambda *_: []), trained_chat),
        sampling=Sampling(),
        backend=RecordingBackend(),
    )
    chat = build_chat(settings, tokenizer)
    messages = assistant_prompt(task, settings)
    assert chat.render_prompt(messages) == engine.prompt_ids(task)
    assert len(chat.render_prompt(messages)) > 20

    policy = ScriptedPolicy(lambda *_: chat.render_call("", [SUBMIT]))
    done, _ = await talk_to(TokenAgent(policy, chat), None, messages=messages)
    assert done.trajectory.prompt_ids == engine.prompt_ids(task)


def test_a_recipe_gives_its_parts_and_the_package_its_own(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    settings = load_assistant(path, ["evaluation.sampling.temperature=0.3"])
    assert (settings.episode.exec_timeout_s, settings.sampling.temperature) == (7, 0.3)
    assert settings.prompts == (str(tmp_path / "mine"),)
    own = load_assistant(None, ["episode.max_turns=7"])
    assert isinstance(own, AssistantSettings)
    assert own.episode.max_turns == 7
