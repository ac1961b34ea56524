"""Answers that share a process: what one leaves there, the others do not pay for."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_rl.rewards.lanes import Lanes
from sandbox_rl.rewards.modules import SHOWN_BELOW, find_modules
from sandbox_rl.rewards.places import PROGRAM
from sandbox_rl.rewards.scoring import task_item
from sandbox_rl.sandboxes.program import ProgramSandboxes

from .conftest import USER, make_task

SPOILT = f"{USER}:leaves_things"


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
