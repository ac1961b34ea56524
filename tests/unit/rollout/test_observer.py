"""What observers see, in which order, and whose fault it is when one fails."""

from __future__ import annotations

from itertools import chain

import pytest

from sandbox_rl.errors import EngineFault
from sandbox_rl.observer import Observer
from sandbox_rl.types import Message, StopReason
from tests.unit.rig import CHAT, NO_SANDBOX, SUBMIT, bash, make_engine, request, say, write

PROMPT = (Message("user", request().task.prompt),)
TURNS = [say(bash("ls"), write("42")), say(SUBMIT)]


class Notes(Observer):
    """Everything, as words."""

    def __init__(self):
        self.seen = []
        self.turns = []

    def started(self, episode, prompt_ids):
        self.seen.append(f"started {episode.attempt}")

    def sampling(self, episode):
        self.seen.append("sampling")

    def sampled(self, episode, turn):
        self.seen.append(f"sampled {len(turn.calls)}")

    def calling(self, episode, call):
        self.seen.append(call.name)

    def observed(self, episode, observation):
        self.seen.append("observed")

    def turn(self, episode, turn):
        self.seen.append("turn")
        self.turns.append(turn)

    def ended(self, episode, stop):
        self.seen.append(f"ended {stop}")

    def rolled_out(self, episode, rollout):
        self.seen.append(f"reward {rollout.reward.value}")


async def run(script, observer, **options):
    async with make_engine(script, **options) as engine:
        return await engine.run([request()], observer=observer)


async def test_every_step_is_seen_as_it_happens():
    notes = Notes()
    (rollout,) = await run(lambda _, turn, ids: TURNS[turn], notes)
    assert notes.seen == [
        "started 0",
        *("sampling", "sampled 2", "execute_bash", "observed", "str_replace_editor", "observed", "turn"),
        *("sampling", "sampled 1", "submit", "observed", "turn"),
        "ended submitted",
        "reward 1.0",
    ]
    assert tuple(notes.turns) == rollout.trajectory.turns


async def test_a_turn_is_seen_with_all_its_ids_before_the_next_one_is_asked_for():
    notes = Notes()

    def script(_, turn, ids):
        kept = [(*turn.action.token_ids, *turn.observation_ids) for turn in notes.turns]
        assert tuple(ids) == CHAT.render_prompt(PROMPT) + tuple(chain.from_iterable(kept))
        return TURNS[turn]

    (rollout,) = await run(script, notes)
    assert rollout.reward.value == 1.0
    assert all(len(t.action.logprobs) == len(t.action.token_ids) for t in notes.turns)


async def test_a_fault_ends_an_attempt_and_the_next_one_begins():
    notes, tries = Notes(), []

    def script(_, turn, ids):
        tries.append(turn)
        if len(tries) == 2:
            raise EngineFault("down")
        return TURNS[turn]

    await run(script, notes, rollout={"retries": 1})
    assert [line for line in notes.seen if line.startswith(("started", "ended", "reward"))] == [
        "started 0",
        "ended None",
        "started 1",
        "ended submitted",
        "reward 1.0",
    ]


EVENTS = ("started", "sampling", "sampled", "calling", "observed", "turn", "ended", "rolled_out")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), TimeoutError("late"), EngineFault("x")]
)
async def test_what_an_observer_raises_is_never_the_policys_and_ends_the_run(event, error):
    """A time-out in an observer is none of the episode; a full disk is no reason to try the episode again."""
    failures = []

    class Broken(Observer):
        pass

    def fail(self, *_):
        failures.append(event)
        raise error

    setattr(Broken, event, fail)
    with pytest.raises(type(error)) as raised:
        await run(lambda _, turn, ids: TURNS[turn], Broken())
    assert raised.value is error
    assert failures == [event]


async def test_without_a_sandbox_an_episode_is_one_turn():
    notes = Notes()
    (rollout,) = await run(lambda *_: say(text="So it is\n42"), notes, backend=NO_SANDBOX)
    assert notes.seen == ["started 0", "sampling", "sampled 0", "turn", "ended submitted", "reward 1.0"]
    assert rollout.trajectory.stop is StopReason.SUBMITTED
