"""Which scoring jobs go first."""

from __future__ import annotations

import asyncio

from sandbox_rl.rewards.connection import Outcome
from sandbox_rl.rewards.job_queue import Habits, Job, Lane


def job(level: int = 0, scorer: str = "math", *, together: bool = False) -> Job:
    return Job(b"", scorer, together, asyncio.get_running_loop().create_future(), level)


async def taken(lane: Lane) -> list[Job]:
    async with lane.take() as jobs:
        return jobs


async def test_what_has_cost_little_goes_first() -> None:
    lane = Lane(range(2), 2, Habits())
    dear, cheap = job(1), job()
    lane.put([dear])
    lane.put([cheap])
    assert [await taken(lane), await taken(lane)] == [[cheap], [dear]]
    assert not lane.busy


async def test_one_worker_is_always_left_for_the_cheap() -> None:
    lane = Lane(range(2), 2, Habits())
    lane.put([job(1), job(1)])
    async with lane.take():
        second = asyncio.create_task(taken(lane))
        await asyncio.sleep(0)
        assert not second.done()
        cheap = job()
        lane.put([cheap])
        assert await second == [cheap]


async def test_a_scorer_that_keeps_using_up_its_slice_waits_behind_the_others_until_it_does_not() -> None:
    habits = Habits()
    lane = Lane(range(2), 2, habits)
    for _ in range(3):
        habits.used(job(scorer="mine"), first_slice_up=True)
    slow, cheap = job(scorer="mine"), job()
    lane.put([slow])
    lane.put([cheap])
    assert await taken(lane) == [cheap]
    assert [(job, job.level) for job in await taken(lane)] == [(slow, 1)]
    habits.used(slow, first_slice_up=False)
    again = job(scorer="mine")
    lane.put([again])
    assert [(job, job.level) for job in await taken(lane)] == [(again, 0)]


async def test_jobs_share_a_process_where_all_may_and_none_is_known_to_be_expensive() -> None:
    lane = Lane(range(2), 1, Habits())
    several = [job(together=True) for _ in range(3)]
    alone = job()
    lane.put([*several, alone])
    assert [await taken(lane), await taken(lane)] == [several, [alone]]
    lane.put([job(1, together=True), job(1, together=True)])
    assert len(await taken(lane)) == 1


async def test_a_job_that_nobody_waits_for_is_not_done() -> None:
    lane = Lane(range(1), 1, Habits())
    given_up, wanted = job(), job()
    lane.put([given_up, wanted])
    given_up.done.cancel()
    assert await taken(lane) == [wanted]
    wanted.settle(Outcome("value", 1.0))
    wanted.settle(Outcome("died"))
    assert wanted.done.result().kind == "value"


async def test_only_a_job_that_somebody_wants_gets_another_worker() -> None:
    lane = Lane(range(2), 2, Habits())
    given_up = job()
    lane.put([given_up])
    given_up.done.cancel()
    needed = asyncio.create_task(lane.wait_for(0.0))
    await asyncio.sleep(0.01)
    assert not needed.done()
    lane.put([job(1)])
    await needed


async def test_jobs_that_are_put_back_before_others_do_not_hide_how_long_these_wait() -> None:
    lane = Lane(range(2), 2, Habits())
    lane.put([job(together=True) for _ in range(17)])
    needed = asyncio.create_task(lane.wait_for(0.2))
    for _ in range(40):
        lane.put(await taken(lane), first=True)
        await asyncio.sleep(0.01)
    assert needed.done()
    needed.cancel()
