"""Scoring in processes that can be killed, so that no answer can stall, crash or taint a run.

Whose fault is it? The one place that decides:

- An answer that was not found or not read, or is empty, huge or malformed, scores 0.0.
- When a *built-in* scorer raises, hangs or takes its process down, the gold answer is looked at alone,
  in a process of its own. If the gold is sound the answer did it, and scores 0.0. If not, it is None.
- A process that dies is tried once more, since it can be killed from outside; a pool that breaks down is
  started anew, and what it loses twice is None.
- When *your own* scorer raises, hangs, crashes or returns no finite number, or a gold answer is
  malformed, the reward is None: the row could not be judged. Other rows are untouched.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from pebble import ProcessExpired, ProcessPool

from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.base import BUILT_IN, JUDGE, load_scorer
from sandbox_rl.rewards.composite import mixed
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.escapes import other_reading
from sandbox_rl.rewards.judge import Judge
from sandbox_rl.rewards.text import MAX_ANSWER_CHARS, clean
from sandbox_rl.rewards.worker import Outcome, check, prepare, run, warm
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task

__all__ = ["ScoringPool"]

logger = logging.getLogger(__name__)

_START_S = 60.0
"""Seconds that starting a worker may take."""

_SLACK_S = 30.0
"""Seconds beyond the hard limit after which the pool itself counts as broken."""

_BATCH = 512
"""Gold answers that are looked at in one go."""

Scorers = tuple[tuple[str, float], ...]


class ScoringPool:
    """Scores answers without ever blocking the event loop. An async context manager; enter it once.

    Args:
        workers: processes.
        timeout: seconds that one answer may take before its process is killed.
        memory_mb: what a process may take on top of what it has once started, MiB.
        scorers: (name, weight) pairs that replace every task's own scorer; empty uses `task.scorer`.
        judge: answers the tasks whose scorer is "judge".
        expected: names of the scorers that tasks will ask for; workers load them as they start.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        timeout: float = 6.0,
        memory_mb: int = 1024,
        scorers: Scorers = (),
        judge: Judge | None = None,
        expected: Sequence[str] = (),
    ) -> None:
        for name, weight in scorers:
            if name != JUDGE and name not in BUILT_IN:
                load_scorer(name)  # a name that cannot be imported shows before the first episode
            if not weight > 0:
                raise ConfigError(f"reward.composite: weight of {name!r} is {weight}; expected more than 0")
            if name == JUDGE and len(scorers) > 1 and judge is None:
                raise ConfigError(
                    "reward.composite: 'judge' has no endpoint; add reward.judge (base_url, model)"
                )
        self._workers = workers
        self._timeout = timeout
        self._memory_mb = memory_mb
        self._scorers = scorers
        self._judge = judge
        self._expected = (*expected, *(name for name, _ in scorers))
        self._pool: ProcessPool | None = None
        self._slots = asyncio.Semaphore(2 * workers)  # one at work and one at hand for each
        self._stack = AsyncExitStack()

    @classmethod
    def from_settings(cls, settings: RewardSettings, *, expected: Sequence[str] = ()) -> ScoringPool:
        """The pool of a recipe's `reward:` block.

        Raises:
            ConfigError: both `scorer` and `composite` are given, or one cannot be imported.
        """
        if settings.scorer is not None and settings.composite:
            raise ConfigError("reward: both 'scorer' and 'composite' are given; keep one of them")
        scorers = tuple(settings.composite.items())
        if settings.scorer is not None:
            scorers = ((settings.scorer, 1.0),)
        return cls(
            workers=settings.workers,
            timeout=settings.timeout_s,
            memory_mb=settings.memory_mb,
            scorers=scorers,
            judge=Judge(settings.judge) if settings.judge is not None else None,
            expected=expected,
        )

    async def __aenter__(self) -> ScoringPool:
        self._pool = self._new_pool()
        try:
            # A worker serves again only when its own warming is done, so this many reach every one.
            async with asyncio.timeout(_START_S):
                await asyncio.gather(*(self._call(_START_S, warm) for _ in range(self._workers)))
            if self._judge is not None:
                await self._stack.enter_async_context(self._judge)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def score(self, task: Task, answer: Answer) -> Reward:
        """The reward of an answer; never raises except on cancellation. See the module for the rules."""
        started = time.monotonic()
        reward = await self._reward(task, answer)
        if reward.value is None:
            logger.warning("task %s could not be judged: %s", task.id, reward.detail)
        return Reward(reward.value, reward.parts, reward.detail, time.monotonic() - started)

    async def check_gold(self, tasks: Sequence[Task]) -> Mapping[str, str]:
        """Task id → reason, for the tasks whose gold answer or scorer is unusable.

        Meant for the time before the first episode; about a thousand tasks a second.
        """
        found: dict[str, str] = {}
        for start in range(0, len(tasks), _BATCH):
            batch = [task for task in tasks[start : start + _BATCH] if _rules(self._scorers_of(task))]
            outcomes = await asyncio.gather(*(self._gold(task) for task in batch))
            for task, outcome in zip(batch, outcomes, strict=True):
                if outcome.kind != "value":
                    found[task.id] = outcome.detail
        return found

    async def _reward(self, task: Task, answer: Answer) -> Reward:
        if answer.status is not AnswerStatus.OK:
            return Reward(0.0, detail=f"answer file: {answer.status.value}")
        raw: object = answer.text
        if not isinstance(raw, str):  # a caller's mistake must not reach the batch
            return Reward(None, detail=f"the answer is a {type(raw).__name__}, not text")
        text = clean(raw)
        if not text or len(text) > MAX_ANSWER_CHARS:
            return Reward(0.0, detail="empty answer" if not text else f"answer of {len(text)} characters")
        scorers = self._scorers_of(task)
        rules = _rules(scorers)
        if len(rules) == len(scorers):
            return await self._by_rules(task, text, rules, raw)
        if not rules:
            return await self._judged(task, text)
        # Rules cost nothing: a row that they cannot judge is not sent to the judge.
        ruled = await self._by_rules(task, text, rules, raw)
        if ruled.value is None:
            return ruled
        weight = sum(weight for _, weight in rules)
        share = weight / sum(weight for _, weight in scorers)
        parts = {rules[0][0]: ruled.value} if len(rules) == 1 else {}
        return mixed(ruled, await self._judged(task, text), share, parts)

    async def _by_rules(self, task: Task, text: str, scorers: Scorers, raw: str) -> Reward:
        other = other_reading(raw)
        either = None if other is None else clean(other)
        outcome = await self._run(self._timeout, run, scorers, text, _without_files(task), either)
        if outcome.kind == "value":
            return Reward(outcome.value, outcome.parts or {})
        if outcome.kind == "bad_gold":
            return Reward(None, detail=f"bad gold answer: {outcome.detail}")
        if outcome.kind == "down" or not all(name in BUILT_IN for name, _ in scorers):
            return Reward(None, detail=outcome.detail)
        gold = await self._gold(task)
        if gold.kind != "value":
            return Reward(None, detail=f"bad gold answer: {gold.detail}")
        return Reward(0.0, detail=f"the answer broke the scorer: {outcome.detail}")

    async def _judged(self, task: Task, text: str) -> Reward:
        if self._judge is None:
            return Reward(None, detail="scorer 'judge' needs the settings reward.judge (base_url, model)")
        reward = await self._judge.score(task, text)
        fallback = self._judge.settings.fallback
        if reward.value is not None or fallback is None:
            return reward
        outcome = await self._run(self._timeout, run, ((fallback, 1.0),), text, _without_files(task))
        if outcome.kind != "value":
            return Reward(None, detail=f"{reward.detail}; fallback {fallback}: {outcome.detail}")
        return Reward(outcome.value, {"judge_fallback": 1.0}, f"scored by {fallback}: {reward.detail}")

    def _scorers_of(self, task: Task) -> Scorers:
        return self._scorers or ((task.scorer, 1.0),)

    async def _gold(self, task: Task) -> Outcome:
        return await self._run(self._timeout, check, _rules(self._scorers_of(task)), _without_files(task))

    async def _run(self, timeout: float, function: Any, *args: Any) -> Outcome:
        outcome = await self._try(timeout, function, *args)
        if outcome.kind in ("broken", "down"):
            # A process can also be killed from outside. What kills a second one did it itself.
            outcome = await self._try(timeout, function, *args)
        return outcome

    async def _try(self, timeout: float, function: Any, *args: Any) -> Outcome:
        async with self._slots:  # queued here, not in the pool: cancelling costs no worker
            pool, start = self._pool, time.monotonic()
            try:
                async with asyncio.timeout(timeout + _SLACK_S):
                    outcome: Outcome = await self._call(timeout, function, *args)
                    return outcome
            except TimeoutError:
                if time.monotonic() - start < timeout + _SLACK_S - 1:
                    return Outcome("error", detail=f"killed after {timeout:g} s")
                reason = "the pool does not answer"
            except ProcessExpired as error:
                return Outcome("broken", detail=f"the scoring process died (exit code {error.exitcode})")
            except RuntimeError as error:  # pebble's word for a pool that gave up
                reason = f"{type(error).__name__}: {error}"
            except Exception as error:  # a value that cannot be sent to another process
                return Outcome("error", detail=f"{type(error).__name__}: {error}"[:300])
        if pool is not None:
            await self._replace(pool)
        return Outcome("down", detail=f"the scoring pool broke down ({reason})"[:300])

    async def _call(self, timeout: float, function: Any, *args: Any) -> Any:
        if self._pool is None:
            raise RuntimeError("the scoring pool is not running; enter it with 'async with'")
        return await asyncio.wrap_future(self._pool.schedule(function, args=args, timeout=timeout))

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._workers,
            initializer=prepare,
            initargs=(self._memory_mb, self._expected),
            context=multiprocessing.get_context("spawn"),
        )

    async def _replace(self, broken: ProcessPool) -> None:
        """A new pool for one that gave up, which it does when a process dies while it has nothing to do."""
        current = self._pool
        if current is None or current is not broken:
            return  # another answer has seen to it, or the pool is being closed
        logger.warning("the scoring pool broke down and is started anew")
        self._pool = self._new_pool()
        broken.stop()
        await asyncio.to_thread(broken.join)

    async def _stop(self) -> None:
        pool, self._pool = self._pool, None
        await self._stack.aclose()
        if pool is not None:
            pool.stop()
            await asyncio.to_thread(pool.join)


def _rules(scorers: Scorers) -> Scorers:
    """Those that are functions."""
    return tuple((name, weight) for name, weight in scorers if name != JUDGE)


def _without_files(task: Task) -> Task:
    # Documents can be megabytes, and every scoring would send them to another process.
    return replace(task, files={}) if task.files else task
