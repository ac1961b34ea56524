"""Many episodes: concurrency, retries, attribution, cancellation."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from sandbox_rl.errors import EngineFault, InfraFault, SandboxFault, SetupError
from sandbox_rl.fakes import RecordingBackend, exec_ok
from sandbox_rl.journal import Index, Journal, JournalObserver
from sandbox_rl.observer import EachRollout
from sandbox_rl.training.reuse import FinishedEpisodes, fit_for_sync
from sandbox_rl.types import ExecResult, Reward, StopReason
from tests.unit.rig import SUBMIT, ExactScoring, bash, make_engine, request, say, write


def solve(episode_id, turn, ids):
    return [say(write("42")), say(SUBMIT)][turn]


@pytest.fixture
def nothing_left_out():
    """By collections of garbage; the suite leaves out what all tests have."""
    gc.unfreeze()
    yield
    gc.freeze()


async def test_collections_of_garbage_leave_out_what_was_there_before_the_episodes(nothing_left_out):
    """A full one over what torch and the libraries have made holds up every episode for 0.2 s."""
    found: list[int] = []

    def looking(episode_id, turn, ids):
        found.append(gc.get_freeze_count())
        return solve(episode_id, turn, ids)

    async with make_engine(looking) as engine:
        await engine.run([request("e")])
    assert min(found) > 10_000
    assert gc.get_freeze_count() == 0


async def test_an_engine_beside_another_ends_nothing_that_the_other_began(nothing_left_out):
    async with make_engine(solve):
        async with make_engine(solve):
            pass
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


async def test_results_come_in_the_order_of_the_requests():
    ended = []

    async def slow_first(command: str) -> ExecResult:
        while command == "wait" and not ended:  # noqa: ASYNC110 (a list to look at, not a task)
            await asyncio.sleep(0.01)
        return exec_ok()

    def script(episode_id, turn, ids):
        return [say(bash("wait" if episode_id == "a" else "go")), say(SUBMIT)][turn]

    async with make_engine(script, backend=RecordingBackend(slow_first)) as engine:
        told = EachRollout(lambda r, _: ended.append(r.id))
        rollouts = await engine.run([request("a"), request("b")], observer=told)
    assert [r.trajectory.episode_id for r in rollouts] == ["a", "b"]
    assert ended == ["b", "a"]


async def test_concurrency_is_bounded_and_used():
    live, most = 0, 0

    async def tool(command: str) -> ExecResult:
        nonlocal live, most
        live += 1
        most = max(most, live)
        await asyncio.sleep(0.02)
        live -= 1
        return exec_ok()

    def script(episode_id, turn, ids):
        return [say(bash("x")), say(SUBMIT)][turn]

    async with make_engine(script, backend=RecordingBackend(tool), rollout={"concurrency": 5}) as engine:
        await engine.run([request(f"e{i}") for i in range(20)])
    assert most == 5


async def test_episodes_do_not_wait_for_each_other():
    """No turn barrier: a slow one's first turn lasts until many short episodes have ended."""
    ended = []

    async def tool(command: str) -> ExecResult:
        while command == "wait" and len(ended) < 10:  # noqa: ASYNC110 (a list to look at, not a task)
            await asyncio.sleep(0.01)
        return exec_ok()

    def script(episode_id, turn, ids):
        return [say(bash("wait" if episode_id == "slow" else "go")), say(bash("go")), say(SUBMIT)][turn]

    async with make_engine(script, backend=RecordingBackend(tool)) as engine:
        await engine.run(
            [request("slow"), *(request(f"e{i}") for i in range(10))],
            observer=EachRollout(lambda r, _: ended.append(r.id)),
        )
    assert ended[-1] == "slow"


async def test_a_fault_is_retried_in_a_fresh_sandbox():
    backend = RecordingBackend(fail_first=2)
    async with make_engine(solve, backend=backend, rollout={"retries": 2}) as engine:
        (rollout,) = await engine.run([request()])
    assert rollout.reward.value == 1.0


async def test_a_lasting_fault_is_masked_and_the_others_go_on():
    class Half(RecordingBackend):
        @asynccontextmanager
        async def sandbox(self, files=None, *, timeout=60.0):
            if files:
                raise SandboxFault("no sandbox for you")
            async with super().sandbox(files, timeout=timeout) as sandbox:
                yield sandbox

    async with make_engine(solve, backend=Half(), rollout={"retries": 1}) as engine:
        bad, good = await engine.run([request("bad", files={"a": b"b"}), request("good")])
    assert good.reward.value == 1.0
    assert bad.reward == Reward(None, detail=bad.reward.detail)
    assert bad.trajectory.stop is StopReason.INFRA_FAULT
    assert "no sandbox for you" in bad.trajectory.fault
    assert bad.trajectory.turns == ()


@pytest.mark.parametrize("error", [EngineFault("engine"), RuntimeError("a defect of ours")])
async def test_no_failure_of_ours_becomes_a_zero(error):
    def broken(episode_id, turn, ids):
        if episode_id == "bad" and turn == 1:
            raise error
        return solve(episode_id, turn, ids)

    async with make_engine(broken, rollout={"retries": 0}) as engine:
        bad, good = await engine.run([request("bad"), request("good")])
    assert (bad.reward.value, good.reward.value) == (None, 1.0)


async def test_a_scorer_that_cannot_judge_leaves_the_trajectory():
    class Broken(ExactScoring):
        async def score(self, task, answer):
            return Reward(None, detail="no gold")

    async with make_engine(solve, scoring=Broken()) as engine:
        (rollout,) = await engine.run([request()])
    assert rollout.trajectory.stop is StopReason.SUBMITTED
    assert rollout.reward.value is None


async def test_when_all_episodes_fail_the_run_says_so():
    backend = RecordingBackend(fail_first=10**6)
    async with make_engine(solve, backend=backend, rollout={"retries": 0}) as engine:
        with pytest.raises(InfraFault, match="all 3 episodes failed"):
            await engine.run([request(f"e{i}") for i in range(3)])


async def test_what_the_machine_cannot_do_stops_at_once():
    class Impossible(RecordingBackend):
        @asynccontextmanager
        async def sandbox(self, files=None, *, timeout=60.0):
            raise SetupError("namespaces: not allowed")
            yield

    async with make_engine(solve, backend=Impossible()) as engine:
        with pytest.raises(SetupError, match="namespaces"):
            await engine.run([request(f"e{i}") for i in range(3)])


async def test_a_file_name_that_no_sandbox_takes_is_our_fault_for_that_task_only():
    async with make_engine(solve, rollout={"retries": 0}) as engine:
        bad, good = await engine.run([request("bad", files={"../x": b""}), request("good")])
    assert bad.reward.value is None
    assert good.reward.value == 1.0


async def test_cancellation_frees_every_sandbox():
    open_now = 0

    class Counting(RecordingBackend):
        @asynccontextmanager
        async def sandbox(self, files=None, *, timeout=60.0):
            nonlocal open_now
            async with super().sandbox(files, timeout=timeout) as sandbox:
                open_now += 1
                try:
                    yield sandbox
                finally:
                    await asyncio.sleep(0.01)
                    open_now -= 1

    async def for_ever(command: str) -> ExecResult:
        await asyncio.sleep(60)
        return exec_ok()

    def script(episode_id, turn, ids):
        return say(bash("x"))

    async with make_engine(script, backend=Counting(for_ever)) as engine:
        running = asyncio.create_task(engine.run([request(f"e{i}") for i in range(8)]))
        while open_now < 8:  # noqa: ASYNC110 (a number to look at, not a task)
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert open_now == 0


async def test_the_seed_of_a_request_reaches_every_turn_differently():
    seeds = []

    class Spy:
        max_context = 10_000

        @asynccontextmanager
        async def session(self, episode_id):
            yield self

        async def act(self, ids, sampling, *, timeout):
            from sandbox_rl.types import Action

            seeds.append(sampling.seed)
            said = say(bash("x")) if len(seeds) % 3 else say(SUBMIT)
            return Action(said, (0.0,) * len(said), "stop")

        async def __aenter__(self):
            return self

        async def __aexit__(self, *exc):
            return None

    async with make_engine(Spy()) as engine:
        await engine.run([request()])
        await engine.run([request()])
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds[:3])) == 3


async def test_what_an_earlier_start_has_finished_is_not_run_again(tmp_path):
    """Real episodes, read from the journal as they were; only the others are run, observed and journaled."""
    asked: list[str] = []

    def noted(episode_id, turn, ids):
        asked.append(episode_id)
        return solve(episode_id, turn, ids)

    requests = [request(f"train-000000-{i:04d}") for i in range(4)]
    with Journal(tmp_path, start=0) as journal:
        observer = JournalObserver(journal, lambda _: {"phase": "train", "step": 0})
        async with make_engine(noted) as engine:
            first = await engine.run(requests[:2], observer=observer)
    with Index(tmp_path) as index:
        index.refresh()
        rows = index.select("SELECT * FROM episodes")
        finished = FinishedEpisodes(tmp_path, fit_for_sync(index, rows))
    asked.clear()
    again = [replace(r, id=f"{r.id}-r1") for r in requests]
    with Journal(tmp_path, start=1) as journal:
        async with make_engine(noted) as engine:
            rollouts = await engine.run(again, observer=JournalObserver(journal), finished=finished.rollout)
            found = await engine.run_groups([again[:2], again[2:]], keep=1, finished=finished.rollout)
    assert set(asked[:4]) == {r.id for r in again[2:]}
    assert [r.trajectory for r in rollouts[:2]] == [r.trajectory for r in first]
    assert [r.reward for r in rollouts[:2]] == [r.reward for r in first]
    assert list(found.ended) == [0], "a group that is finished comes first"
    other = replace(requests[0], seed=requests[0].seed + 1)
    assert finished.rollout(other) is None, "another draw"
