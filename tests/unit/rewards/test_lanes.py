"""What an answer leaves in a process or costs, the others do not pay for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandbox_rl.rewards.connection import Ending, Worker
from sandbox_rl.rewards.lanes import Lanes
from sandbox_rl.rewards.modules import SHOWN_BELOW, find_modules
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.scoring import task_item
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.types import Task

from .conftest import USER, make_task

SPOILT = f"{USER}:leaves_things"
SPINS = f"{USER}:spins"


@pytest.mark.parametrize("spoiler", ["hoard", "break", "kill", "lie"])
async def test_an_answer_changes_no_verdict_of_those_that_share_its_process(spoiler: str) -> None:
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    await place.open(find_modules([SPOILT]))
    config = {"scorers": [SPOILT], "path": [SHOWN_BELOW]}
    lanes = Lanes(place, config, workers=1, timeout=2.0, memory_mb=1024)
    await lanes.start()

    def item(answer: str) -> dict[str, object]:
        task = task_item(make_task("42", SPOILT))
        return {"do": "score", "scorers": [[SPOILT, 1.0]], "answer": answer, "task": task}

    try:
        texts = ["42", spoiler, "42", "41", spoiler, *["42"] * 11]
        outcomes = await asyncio.gather(*(lanes.run(item(text), together=True) for text in texts))
    finally:
        await lanes.stop()
        await place.close()
    assert [(o.kind, o.value) for o in outcomes if o.kind != "value"] == []
    assert [o.value for o in outcomes] == [float(text == "42") for text in texts]


@asynccontextmanager
async def workers(count: int) -> AsyncIterator[list[Worker]]:
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    await place.open(find_modules([SPINS]))
    config = {"scorers": [SPINS], "path": [SHOWN_BELOW]}
    made: list[Worker] = []
    try:
        for _ in range(count):
            made.append(await Worker.start(place, config, 512))
        yield made
    finally:
        for worker in made:
            worker.kill()
        await place.close()


def bomb(worker: Worker, seconds: float) -> asyncio.Task[Ending]:
    item = {"do": "score", "scorers": [[SPINS, 1.0]], "answer": "a", "task": task_item(make_task("1", SPINS))}
    return asyncio.create_task(worker.score([json.dumps(item).encode()], seconds, lambda *_: None))


async def test_a_slowed_worker_leaves_the_processors_to_others() -> None:
    async with workers(1) as (worker,):
        worker.slow(True)
        started = time.monotonic()
        ending = await bomb(worker, 0.2)
        assert ending.out_of_time
        assert time.monotonic() - started > 4 * ending.seconds


async def test_a_worker_that_may_go_on_does_so_at_once() -> None:
    """Both have the same work; the one that is held back ends later."""
    async with workers(2) as (held_back, freed):
        for worker in (held_back, freed):
            worker.slow(True)
        slow, quick = bomb(held_back, 1.0), bomb(freed, 1.0)
        await asyncio.sleep(0.2)
        freed.slow(False)
        done, _ = await asyncio.wait((slow, quick), return_when=asyncio.FIRST_COMPLETED)
        assert done == {quick}
        slow.cancel()
        await asyncio.wait((slow,))


async def test_what_a_verifier_needs_is_loaded_once_for_all_answers() -> None:
    """Its word list takes a fifth of a second: a process per answer would never end within its slice."""
    place = ProgramSandboxes(PROGRAM, memory_mb=2048)
    await place.open({})
    lanes = Lanes(place, {"scorers": ["reasoning_gym"], "path": []}, workers=1, timeout=0.05, memory_mb=512)
    await lanes.start()
    entry = {"question": "?", "answer": "sun", "metadata": {"word": "nus"}}
    metadata = {"dataset": "spell_backward", "entry": entry}
    task = task_item(Task("t", "?", "sun", scorer="reasoning_gym", metadata=metadata))
    item = {"do": "score", "scorers": [["reasoning_gym", 1.0]], "answer": "moon", "task": task}
    try:
        outcomes = [await lanes.run(item, dataset="spell_backward") for _ in range(3)]
    finally:
        await lanes.stop()
        await place.close()
    assert [(o.kind, o.value) for o in outcomes] == [("value", 0.0)] * 3
