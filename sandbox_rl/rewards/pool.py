"""Scoring in processes that can do nothing but compute, so that no answer can stall, crash or taint a run.

Whose fault is it? The one place that decides:

- An answer that was not found or not read, or is empty, huge or malformed, scores 0.0.
- When a scorer raises, hangs, takes its process down or returns no number in [0, 1] on an answer, the row is
  looked at without the answer, in a process of its own: a built-in scorer looks at the gold answer, your own
  scores the gold answer and a constant. If that works the answer did it: 0.0, with the part `scorer_failed`.
  If not, the row cannot be judged: None.
- Whatever a scoring process says of itself is checked in the same way, since an answer may speak for it.
- A worker that is lost is replaced and its jobs are done once more, since it can be killed from outside.
  None as well where no worker is available.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from sandbox_rl.errors import ConfigError
from sandbox_rl.rewards.base import BUILT_IN, JUDGE
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.connection import Outcome
from sandbox_rl.rewards.escapes import other_reading
from sandbox_rl.rewards.judge import Judge
from sandbox_rl.rewards.modules import own_scorers
from sandbox_rl.rewards.places import Place
from sandbox_rl.rewards.runner import Runner, Scorers
from sandbox_rl.rewards.text import MAX_ANSWER_CHARS, clean
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task

logger = logging.getLogger(__name__)

_BATCH = 512
"""Gold answers that are looked at in one go."""

_CONSTANT = "an answer"
"""What your own scorer is given to see whether it works at all on a row without a gold text."""

_REMEMBERED = 4096
_NO_JUDGE = "scorer 'judge' needs the settings reward.judge (base_url, model)"


class ScoringPool:
    """Scores answers without ever blocking the event loop. An async context manager; enter it once.

    Args:
        place: where workers run.
        settings: a recipe's `reward:` block.
        expected: names of the scorers that tasks will ask for; workers load them as they start.
        beside: a directory in which scorers of your own are looked for, besides the Python path.

    Raises:
        ConfigError: both `scorer` and `composite` are given, one is unknown, or a weight or the judge's
            endpoint cannot be.
    """

    def __init__(
        self,
        place: Place,
        settings: RewardSettings = RewardSettings(),  # noqa: B008 (frozen)
        *,
        expected: Sequence[str] = (),
        beside: Path | None = None,
    ) -> None:
        if settings.scorer is not None and settings.composite:
            raise ConfigError("reward: both 'scorer' and 'composite' are given; keep one of them")
        one = ((settings.scorer, 1.0),) if settings.scorer is not None else ()
        scorers = one or tuple(settings.composite.items())
        own_scorers([name for name, _ in scorers])
        for name, weight in scorers:
            if not weight > 0:
                raise ConfigError(f"reward.composite: weight of {name!r} is {weight}; expected more than 0")
            if name == JUDGE and len(scorers) > 1 and settings.judge is None:
                raise ConfigError(
                    "reward.composite: 'judge' has no endpoint; add reward.judge (base_url, model)"
                )
        self._scorers = scorers
        self._judge = None if settings.judge is None else Judge(settings.judge)
        self.timeout_s = settings.timeout_s
        """Processor seconds that one answer may take."""
        names = [name for name, _ in scorers] or list(expected)
        loaded = tuple(dict.fromkeys(n for n in (*names, self.fallback or "exact") if n != JUDGE))
        self._runner = Runner(place, settings, loaded, beside)
        self._sound: dict[tuple[str, Scorers], str] = {}
        self._told: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> ScoringPool:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._runner.stop)
            await self._runner.start()
            if self._judge is not None:
                await stack.enter_async_context(self._judge)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

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
            ruled = [(task, _rules(self._scorers_of(task))) for task in tasks[start : start + _BATCH]]
            batch = [(task, rules) for task, rules in ruled if rules]
            outcomes = await asyncio.gather(*(self._runner.run("gold", r, task) for task, r in batch))
            for (task, _), outcome in zip(batch, outcomes, strict=True):
                if outcome.kind != "value":
                    found[task.id] = outcome.detail
        return found

    @property
    def fallback(self) -> str | None:
        """The rule that scores while the judge is down."""
        return self._judge.settings.fallback if self._judge is not None else None

    def rules_of(self, task: Task) -> tuple[str, ...]:
        """Names of the deterministic scorers of a task."""
        return tuple(name for name, _ in _rules(self._scorers_of(task)))

    def needs_judge(self, task: Task) -> bool:
        """Whether a model judges this task."""
        return any(name == JUDGE for name, _ in self._scorers_of(task))

    async def judge_problem(self) -> str:
        """Why the judge gives no verdict on a text of ours; "" if it does."""
        if self._judge is None:
            return _NO_JUDGE
        # New words every time, since verdicts are kept by content.
        probe = Task("probe", f"What is 6 * 7? (Check {secrets.token_hex(4)})", "42", scorer=JUDGE)
        reward = await self._judge.score(probe, "42")
        return reward.detail or "it gave no verdict" if reward.value is None else ""

    async def probe(self, task: Task, text: str, *, may_not_read: bool = True) -> Outcome:
        """What the deterministic scorers of a task make of a text of ours, whoever is to blame for a failure.

        Args:
            may_not_read: a text that a scorer marked by `base.reads_with` cannot read is worth 0.
        """
        scorers = _rules(self._scorers_of(task))
        outcome = await self._runner.value(task, clean(text), scorers, ours=True)
        return Outcome("value", 0.0) if outcome.kind == "unread" and may_not_read else outcome

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
        # A row that rules cannot judge is not sent to the judge.
        ruled = await self._by_rules(task, text, rules, raw)
        if ruled.value is None:
            return ruled
        judged = await self._judged(task, text)
        if judged.value is None:
            return Reward(None, detail=judged.detail)
        share = sum(weight for _, weight in rules) / sum(weight for _, weight in scorers)
        own = {rules[0][0]: ruled.value} if len(rules) == 1 else {}
        return Reward(
            share * ruled.value + (1 - share) * judged.value,
            {**own, **ruled.parts, **judged.parts, JUDGE: judged.value},
            "; ".join(filter(None, (ruled.detail, judged.detail))),
        )

    async def _by_rules(self, task: Task, text: str, scorers: Scorers, raw: str) -> Reward:
        other = other_reading(raw)
        outcome = await self._runner.value(task, text, scorers, None if other is None else clean(other))
        if outcome.kind == "value":
            return Reward(outcome.value, outcome.parts)
        return await self._blame(outcome, task, scorers)

    async def _blame(self, outcome: Outcome, task: Task, scorers: Scorers) -> Reward:
        """The reward where an answer was not valued."""
        if outcome.kind == "down":
            return Reward(None, detail=outcome.detail)
        if reason := await self._unsound(task, scorers):
            return Reward(None, detail=reason)
        names = ", ".join(name for name, _ in scorers)
        if names not in self._told:
            self._told.add(names)
            logger.warning(
                f"scorer {names} failed on an answer to task {task.id}, which earns 0 (logged once; the part "
                f"scorer_failed counts them): {outcome.detail}"
            )
        return Reward(0.0, {"scorer_failed": 1.0}, f"the answer broke the scorer: {outcome.detail}")

    async def _unsound(self, task: Task, scorers: Scorers) -> str:
        """Why this row cannot be judged whatever the answer, "" if it can."""
        key = (task.id, scorers)
        if (known := self._sound.get(key)) is not None:
            return known
        outcome, reason = await self._try_without_answer(task, scorers)
        if outcome.kind in ("down", "broken"):  # says nothing of the row: the next answer asks again
            return reason
        if len(self._sound) >= _REMEMBERED:
            self._sound.clear()
        self._sound[key] = reason
        return reason

    async def _try_without_answer(self, task: Task, scorers: Scorers) -> tuple[Outcome, str]:
        gold = await self._runner.run("gold", scorers, task)
        if gold.kind != "value":
            return gold, gold.detail if gold.kind == "down" else f"bad gold answer: {gold.detail}"
        for name, _ in scorers:
            if name in BUILT_IN:
                continue
            outcome = gold
            for probe in (task.answer, _CONSTANT):
                outcome = await self._runner.value(task, str(probe), ((name, 1.0),))
                if outcome.kind in ("value", "late"):
                    break
            if outcome.kind != "value":
                return outcome, f"scorer {name} fails on the gold answer too: {outcome.detail}"
        return gold, ""

    async def _judged(self, task: Task, text: str) -> Reward:
        if self._judge is None:
            return Reward(None, detail=_NO_JUDGE)
        reward, fallback = await self._judge.score(task, text), self.fallback
        if reward.value is not None or fallback is None:
            return reward
        outcome = await self._runner.run("score", ((fallback, 1.0),), task, text)
        if outcome.kind != "value":
            return Reward(None, detail=f"{reward.detail}; fallback {fallback}: {outcome.detail}")
        return Reward(outcome.value, {"judge_fallback": 1.0}, f"scored by {fallback}: {reward.detail}")

    def _scorers_of(self, task: Task) -> Scorers:
        return self._scorers or ((task.scorer, 1.0),)


def _rules(scorers: Scorers) -> Scorers:
    """Those that are functions."""
    return tuple((name, weight) for name, weight in scorers if name != JUDGE)
