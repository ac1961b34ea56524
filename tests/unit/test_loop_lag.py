"""What a policy writes and prints cannot hold up the event loop that all episodes share."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from sandbox_rl.cooperate import give_way
from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.tools.text import LOOKED_AT, MAX_OBSERVATION_CHARS, stream_text
from sandbox_rl.tools.toolbox import MAX_TURN_CHARS, fitted
from sandbox_rl.types import Observation, Stream
from tests.unit.rig import CHAT, SUBMIT, bash, make_engine, request, say

HOSTILE = {
    "rare planes": "".join(chr(0x10000 + 7919 * i % 0xF0000) for i in range(1 << 18)),
    "escapes": "\x1b" * (1 << 20),
    "controls": "\x01a" * (1 << 19),
    "control tokens": "<|im_end|>" * (1 << 16),
    "line ends": "\n" * (1 << 20),
}


async def steps_of_another(work, stop) -> int:
    """How often another coroutine got its turn while `work` ran."""
    count = 0

    async def other() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            await asyncio.sleep(0)

    watcher = asyncio.create_task(other())
    await work
    stop.set()
    await watcher
    return count


@pytest.mark.parametrize("kind", HOSTILE)
async def test_others_get_their_turn_between_the_calls_of_hostile_episodes(kind):
    output = HOSTILE[kind].encode()
    turn = say(*[bash("x") for _ in range(16)])

    async def tool(_: str):
        return exec_ok(output)  # at once: only our own work takes time

    engine = make_engine(
        lambda _, number, ids: turn if number == 0 else say(SUBMIT),
        backend=RecordingBackend(answer_exec=tool),
        episode={"max_turns": 2, "max_tokens": 1 << 20, "timeout_s": 100},
        max_context=1 << 22,
    )
    async with engine:
        steps = await steps_of_another(engine.run([request(f"e{i}") for i in range(4)]), stop=asyncio.Event())
    # One piece of work at a time: at least one turn for others around each of the 4 × 16 calls.
    assert steps >= 4 * 16


async def test_encoding_observations_lets_the_loop_go_on():
    """Counted, not timed: while one long observation is encoded, the loop goes round many times."""
    text = HOSTILE["rare planes"][:MAX_TURN_CHARS]
    work = asyncio.to_thread(CHAT.render_observations, [text], ended_by=CHAT.ends.written)
    alone = time.process_time()
    CHAT.render_observations([text], ended_by=CHAT.ends.written)
    alone = time.process_time() - alone
    rounds = await steps_of_another(work, stop=asyncio.Event())
    # With the interpreter's lock held there would be a handful, at most one per switch interval.
    assert rounds > 5 * alone / sys.getswitchinterval()


async def test_one_coroutine_passes_in_a_round_of_the_loop():
    passed: list[int] = []

    async def one(name: int) -> None:
        await give_way()
        passed.append(name)

    tasks = [asyncio.create_task(one(i)) for i in range(5)]
    seen = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert len(passed) - seen <= 1
        seen = len(passed)
    assert passed == list(range(5))


async def test_the_observations_of_a_turn_are_bounded_together():
    output = ("é" * 200 + "\n") * 500
    sent: list[int] = []

    async def tool(_: str):
        return exec_ok(output)

    def script(_, number, ids):
        sent.append(len(ids))
        return say(*[bash("x")] * 64) if number == 0 else say(SUBMIT)

    engine = make_engine(
        script,
        backend=RecordingBackend(answer_exec=tool),
        episode={"max_tokens": 1 << 20},
        max_context=1 << 22,
    )
    async with engine:
        (rollout,) = await engine.run([request()])
    texts = [o.text for o in rollout.trajectory.turns[0].observations]
    assert len(texts) == 64
    assert sum(map(len, texts)) <= MAX_TURN_CHARS + 64 * 200
    assert "é" * 100 in texts[0]
    assert "make fewer calls at a time" in texts[-1]


def test_what_a_turn_has_left_bounds_an_observation():
    long = Observation("x" * 100_000, tool="mine")
    assert len(fitted(long, 10**9).text) <= MAX_OBSERVATION_CHARS
    assert len(fitted(long, 0).text) <= 200
    assert fitted(Observation("short"), 0).text == "short"


def test_only_the_ends_of_a_long_stream_are_looked_at():
    middle = b"\x1b" * (1 << 20)
    text = stream_text(Stream(b"head\n" + middle + b"\ntail", b"", 10 + len(middle)), 1000)
    assert text.startswith("head\n")
    assert text.endswith("\ntail")
    assert f"the output was {10 + len(middle)} bytes" in text
    short = b"a" * (2 * LOOKED_AT)
    assert stream_text(Stream(short, b"", len(short)), 1 << 20) == short.decode()
