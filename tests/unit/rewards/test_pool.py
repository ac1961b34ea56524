"""The pool: who is to blame, and that one bad row touches no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_rl.errors import ConfigError, SandboxFault
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PlainPlace
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.types import Answer, AnswerStatus, Task

from .conftest import USER, ScoreNow, make_task, ok, scoring_pool


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.syspath_prepend(str(request.config.rootpath))


@pytest.mark.parametrize("status", [status for status in AnswerStatus if status is not AnswerStatus.OK])
def test_answers_that_were_not_read_score_zero(pool_runner: Any, status: AnswerStatus) -> None:
    pool, run = pool_runner
    reward = run(pool.score(make_task("42"), Answer(status)))
    assert reward.value == 0.0
    assert status.value in reward.detail


@pytest.mark.parametrize("text", ["", "  \n", "\ufeff", "\0", "4" * 70_000])
def test_empty_and_huge_answers_score_zero(score: ScoreNow, text: str) -> None:
    assert score(text, "42").value == 0.0


def test_one_poisoned_row_touches_no_other(pool_runner: Any) -> None:
    pool, run = pool_runner
    rows = [
        ("42", "42"),
        (object(), "42"),
        (r"\boxed{9^{9^{9}}}", "42"),
        ("42", None),
        ("42", ""),
        ("42", "42"),
    ]

    async def all_rows() -> list[float | None]:
        rewards = await asyncio.gather(*(pool.score(make_task(gold), ok(text)) for text, gold in rows))
        return [reward.value for reward in rewards]

    assert run(all_rows()) == [1.0, None, 0.0, None, None, 1.0]


@pytest.mark.parametrize("function", ["raises", "nan", "dies", "eats"])
def test_your_own_scorers_failures_are_not_the_answers(score: ScoreNow, function: str) -> None:
    reward = score("42", "42", f"{USER}:{function}")
    assert reward.value is None
    assert reward.detail
    assert score("42", "42").value == 1.0


def test_your_own_scorer_and_its_parts(score: ScoreNow) -> None:
    assert score("abcde", "-", f"{USER}:length").value == 0.5
    reward = score("abcde", "-", f"{USER}:parts")
    assert (reward.value, reward.parts) == (0.5, {"form": 1.0})


def test_workers_import_neither_torch_nor_what_they_do_not_need(score: ScoreNow) -> None:
    assert score("a", "-", f"{USER}:modules").parts == {"torch": 0.0, "gym": 0.0}


async def test_hang_is_killed_and_delays_nobody() -> None:
    async def race(pool: ScoringPool) -> tuple[Any, list[Any], bool, float]:
        lag = 0.0

        async def watch() -> None:
            nonlocal lag
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.02)
                lag = max(lag, time.monotonic() - before - 0.02)

        watcher = asyncio.create_task(watch())
        hanging = asyncio.create_task(pool.score(make_task("-", f"{USER}:hangs"), ok("a")))
        good = await asyncio.gather(*(pool.score(make_task("42"), ok("42")) for _ in range(56)))
        delayed = hanging.done()
        hung = await hanging
        watcher.cancel()
        return hung, good, delayed, lag

    async with scoring_pool(workers=2, timeout_s=4.0) as pool:
        hung, good, delayed, lag = await race(pool)
        assert (await pool.score(make_task("42"), ok("42"))).value == 1.0
    assert hung.value is None
    assert "killed" in hung.detail
    assert [reward.value for reward in good] == [1.0] * 56
    assert not delayed
    assert lag < 4.0  # a blocked loop would lag as long as the hang


async def test_a_built_in_scorer_that_is_killed_blames_the_answer() -> None:
    gold, answer = "cat dog " * 700, "dog cat bird " * 400  # most of a second of comparing
    async with scoring_pool(workers=1, timeout_s=0.01) as pool:
        reward = await pool.score(make_task(gold, "rouge_l"), ok(answer))
        assert reward.value == 0.0
        assert "the answer broke the scorer: killed" in reward.detail


def test_check_gold_names_the_rows(pool_runner: Any) -> None:
    from dataclasses import replace

    pool, run = pool_runner
    tasks = [replace(make_task(gold), id=str(at)) for at, gold in enumerate(["1", "", "2"])]
    found = run(pool.check_gold(tasks))
    assert list(found) == ["1"]
    assert "expected text" in found["1"]


async def test_cancelling_a_score_leaves_the_pool_usable() -> None:
    async with scoring_pool(workers=1, timeout_s=5.0) as pool:
        waiting = asyncio.create_task(pool.score(make_task("-", f"{USER}:hangs"), ok("a")))
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(60):
            assert (await pool.score(make_task("42"), ok("42"))).value == 1.0


def worker_processes() -> list[int]:
    """Host ids of the first processes of this process's scoring sandboxes, running ones only."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes()

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [p for p in parents if commands.get(p, b"").startswith(b"/run/agent/python") and ours(p)]


async def test_workers_that_are_killed_while_idle_are_replaced() -> None:
    before = worker_processes()
    async with scoring_pool(workers=2, timeout_s=5.0) as pool:
        (worker,) = [pid for pid in worker_processes() if pid not in before]
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(60):
            rewards = await asyncio.gather(*(pool.score(make_task("42"), ok("42")) for _ in range(8)))
        assert [reward.value for reward in rewards] == [1.0] * 8


async def test_there_are_more_workers_only_where_answers_wait() -> None:
    before = set(worker_processes())
    async with scoring_pool(workers=2, timeout_s=0.05) as pool:
        quick = [(await pool.score(make_task("42", "exact"), ok("42"))).value for _ in range(8)]
        assert quick == [1.0] * 8
        assert len(set(worker_processes()) - before) == 1
        spins = make_task("1", f"{USER}:spins")
        costly = [asyncio.create_task(pool.score(spins, ok(f"a{n}"))) for n in range(60)]
        async with asyncio.timeout(60):
            while len(set(worker_processes()) - before) < 2:
                assert not all(task.done() for task in costly), "they never had another worker"
                await asyncio.sleep(0.05)
        for task in costly:
            task.cancel()
        await asyncio.gather(*costly, return_exceptions=True)


class _Scarce(PlainPlace):
    """Starts no more workers than are left."""

    left = 1

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Any] = []

    async def start(self) -> Any:
        if not self.left:
            raise SandboxFault("nothing can be started just now")
        self.left -= 1
        self.started.append(await super().start())
        return self.started[-1]


async def test_what_cannot_be_looked_at_for_now_is_not_held_against_the_row() -> None:
    place = _Scarce()
    task = make_task("42", f"{USER}:ends_its_worker")
    settings = RewardSettings(workers=1, timeout_s=0.05)  # no second lane, which has a worker of its own
    async with ScoringPool(place, settings, expected=[task.scorer]) as pool:
        place.left = 1  # the answer ends two workers, and none is there to look at the gold answer
        reward = await pool.score(task, ok("boom"))
        assert (reward.value, reward.detail) == (None, "nothing can be started just now")
        place.left = 9
        assert (await pool.score(task, ok("boom"))).value == 0.0


async def test_answers_are_left_to_the_workers_that_are_there_where_no_other_starts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a further worker nor one in place of a killed one."""
    place = _Scarce()
    task = make_task("1", f"{USER}:does_as_told")
    settings = RewardSettings(workers=2, timeout_s=0.05)
    async with ScoringPool(place, settings, expected=[task.scorer]) as pool, asyncio.timeout(60):
        assert place.left == 0
        texts = ["wait", "an answer"] * 12  # each of the former keeps the only worker for a tenth of a second
        rewards = await asyncio.gather(*(pool.score(task, ok(text)) for text in texts))
        assert [reward.value for reward in rewards] == [0.0, 1.0] * 12
        assert caplog.text.count("no other starts: nothing can be started just now") == 1
        place.left = 1
        while place.left or len(place.started) < 2:
            await asyncio.gather(*(pool.score(task, ok("wait")) for _ in range(12)))
        place.started[0].process.kill()
        rewards = await asyncio.gather(*(pool.score(task, ok("cost")) for _ in range(8)))
    unscored = [reward.detail for reward in rewards if reward.value is None]
    assert len(unscored) <= 1, unscored  # the one that the killed worker was given


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_process_without_descriptors_judges_nothing_until_it_has_some() -> None:
    settings = RewardSettings(workers=1, timeout_s=0.05)
    async with ScoringPool(PlainPlace(), settings, expected=["exact"]) as pool, asyncio.timeout(60):
        with no_descriptors():
            reward = await pool.score(make_task("42", "exact"), ok("42"))
        assert reward.value is None
        assert "Too many open files" in reward.detail
        assert (await pool.score(make_task("42", "exact"), ok("42"))).value == 1.0


async def test_an_answer_that_uses_up_several_slices_counts_once_against_its_scorer() -> None:
    """Three in a row would have the others of that scorer wait behind the cheap ones of all scorers."""
    told, other = make_task("1", f"{USER}:does_as_told"), make_task("1", f"{USER}:length")
    settings = RewardSettings(workers=1, timeout_s=0.05)
    came = []

    async def score(task: Task, text: str) -> None:
        await pool.score(task, ok(text))
        came.append(text)

    async with ScoringPool(PlainPlace(), settings, expected=[told.scorer, other.scorer]) as pool:
        for _ in range(3):  # the gold answer, which is cheap, is looked at after the first
            assert (await pool.score(told, ok("wait"))).value == 0.0
        judged = [asyncio.create_task(score(other, "first"))]
        await asyncio.sleep(0)
        judged += [asyncio.create_task(score(*of)) for of in ((told, "before"), (other, "behind"))]
        await asyncio.gather(*judged)
    assert came == ["first", "before", "behind"]


def running_in_group(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("worker_lost", [False, True])
async def test_no_answer_runs_on_after_its_worker_where_nothing_isolates_them(*, worker_lost: bool) -> None:
    place = _Scarce()
    task = make_task("1", f"{USER}:hangs")
    async with ScoringPool(place, RewardSettings(workers=1, timeout_s=5.0), expected=[task.scorer]) as pool:
        worker = place.started[0].process.pid
        judged = asyncio.create_task(pool.score(task, ok("a")))
        async with asyncio.timeout(60):
            while len(running_in_group(worker)) < 2:
                assert not judged.done()
                await asyncio.sleep(0.005)
        if worker_lost:
            os.kill(worker, signal.SIGKILL)
            assert (await judged).value is None
    for _ in range(6000):
        if not (left := running_in_group(worker)):
            break
        await asyncio.sleep(0.01)
    assert left == []
    await asyncio.gather(judged, return_exceptions=True)


async def test_composite_and_override() -> None:
    async with scoring_pool(composite={"exact": 3.0, "f1": 1.0}, workers=1) as pool:
        reward = await pool.score(make_task("Eiffel Tower"), ok("Eiffel"))
        assert reward.value == pytest.approx((0 * 3 + 2 / 3) / 4)
        assert reward.parts == pytest.approx({"exact": 0.0, "f1": 2 / 3})


def test_settings_that_cannot_work_are_reported() -> None:
    with pytest.raises(ConfigError, match="both"):
        scoring_pool(scorer="f1", composite={"exact": 1.0})
    with pytest.raises(ConfigError, match="weight"):
        scoring_pool(composite={"exact": 0.0})
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        scoring_pool(scorer="exakt")
