"""Scoring in processes that can do nothing but compute, so that no answer can stall, crash or taint a run.

Whose fault is it? The one place that decides:

- An answer that was not found or not read, or is empty, huge or malformed, scores 0.0.
- When a scorer raises, hangs, takes its process down or returns no number in [0, 1] on an answer, the row is
  looked at without the answer, in a process of its own: a built-in scorer looks at the gold answer, your own
  scores the gold answer and a constant. If that works the answer did it: 0.0, with the part `scorer_failed`.
  If not, the row cannot be judged: None.
- Whatever a scoring process says of itself is checked in the same way, since an answer may speak for it.
- A worker that is lost is replaced and its jobs are done once more, since it can be killed from outside.
  None as well where no worker can be had.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from sandbox_rl.errors import ConfigError, SandboxFault, SetupError
from sandbox_rl.rewards.base import BUILT_IN, JUDGE
from sandbox_rl.rewards.composite import mixed
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.escapes import other_reading
from sandbox_rl.rewards.gym_verifiers import VERIFIERS
from sandbox_rl.rewards.judge import Judge
from sandbox_rl.rewards.lanes import Lanes, Outcome
from sandbox_rl.rewards.modules import SHOWN_BELOW, find_modules, own_scorers
from sandbox_rl.rewards.places import Place
from sandbox_rl.rewards.scoring import task_item
from sandbox_rl.rewards.text import MAX_ANSWER_CHARS, clean
from sandbox_rl.types import Answer, AnswerStatus, Reward, Task

__all__ = ["ScoringPool"]

logger = logging.getLogger(__name__)

_BATCH = 512
"""Gold answers that are looked at in one go."""

_TOGETHER = frozenset({"math", "choice", "exact", "f1", "rouge_l", "numeric", "rules"})
"""Scorers that compare texts: a process may score several answers, until one is about to be evaluated."""

_CONSTANT = "an answer"
"""What your own scorer is given to see whether it works at all on a row without a gold text."""

_REMEMBERED = 4096

Scorers = tuple[tuple[str, float], ...]


class ScoringPool:
    """Scores answers without ever blocking the event loop. An async context manager; enter it once.

    Args:
        place: where workers run.
        workers: worker processes of the fast lane (`lanes`).
        timeout: processor seconds that one answer may take.
        memory_mb: what a process may take on top of what its worker has once started, MiB.
        scorers: (name, weight) pairs that replace every task's own scorer; empty uses `task.scorer`.
        judge: answers the tasks whose scorer is "judge".
        expected: names of the scorers that tasks will ask for; workers load them as they start.
        beside: a directory in which scorers of your own are looked for, besides the Python path.
    """

    def __init__(
        self,
        place: Place,
        *,
        workers: int = 2,
        timeout: float = 6.0,
        memory_mb: int = 1024,
        scorers: Scorers = (),
        judge: Judge | None = None,
        expected: Sequence[str] = (),
        beside: Path | None = None,
    ) -> None:
        own_scorers([name for name, _ in scorers])
        for name, weight in scorers:
            if not weight > 0:
                raise ConfigError(f"reward.composite: weight of {name!r} is {weight}; expected more than 0")
            if name == JUDGE and len(scorers) > 1 and judge is None:
                raise ConfigError(
                    "reward.composite: 'judge' has no endpoint; add reward.judge (base_url, model)"
                )
        self._place = place
        self._workers = workers
        self._timeout = timeout
        self._memory_mb = memory_mb
        self._scorers = scorers
        self._judge = judge
        fallback = judge.settings.fallback if judge is not None else None
        names = [name for name, _ in scorers] or list(expected)
        self._loaded = tuple(dict.fromkeys(n for n in (*names, fallback or "exact") if n != JUDGE))
        self._beside = beside
        self._lanes: Lanes | None = None
        self._renewing = asyncio.Lock()
        self._sound: dict[tuple[str, Scorers], str] = {}
        self._told: set[str] = set()
        self._stack = AsyncExitStack()

    @classmethod
    def from_settings(
        cls,
        settings: RewardSettings,
        place: Place,
        *,
        expected: Sequence[str] = (),
        beside: Path | None = None,
    ) -> ScoringPool:
        """The pool of a recipe's `reward:` block.

        Raises:
            ConfigError: both `scorer` and `composite` are given, or one is unknown.
        """
        if settings.scorer is not None and settings.composite:
            raise ConfigError("reward: both 'scorer' and 'composite' are given; keep one of them")
        scorers = tuple(settings.composite.items())
        if settings.scorer is not None:
            scorers = ((settings.scorer, 1.0),)
        return cls(
            place,
            workers=settings.workers,
            timeout=settings.timeout_s,
            memory_mb=settings.memory_mb,
            scorers=scorers,
            judge=Judge(settings.judge) if settings.judge is not None else None,
            expected=expected,
            beside=beside,
        )

    async def __aenter__(self) -> ScoringPool:
        if self._place.isolation == "none":
            logger.warning(
                "reward.isolation is none: an answer that gets a scorer to run code runs it as this user"
            )
        try:
            self._lanes = await self._open()
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

    @property
    def timeout_s(self) -> float:
        """Processor seconds that one answer may take."""
        return self._timeout

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
            return "scorer 'judge' needs the settings reward.judge (base_url, model)"
        # New words every time, since verdicts are kept by content.
        probe = Task("probe", f"What is 6 * 7? (Check {secrets.token_hex(4)})", "42", scorer=JUDGE)
        reward = await self._judge.score(probe, "42")
        return reward.detail or "it gave no verdict" if reward.value is None else ""

    async def probe(self, task: Task, text: str, *, may_not_read: bool = True) -> Outcome:
        """What the deterministic scorers of a task make of a text, whoever is to blame for a failure.

        Args:
            may_not_read: a text that a scorer marked by `base.reads_with` cannot read is worth 0.
        """
        scorers = _rules(self._scorers_of(task))
        outcome = await self._value(task, clean(text), scorers)
        if outcome.kind == "error" and may_not_read:
            for name, _ in scorers:
                if name not in BUILT_IN and await self._reads(name):
                    read = await self._run("read", ((name, 1.0),), task, clean(text))
                    return outcome if read.kind == "value" else Outcome("value", 0.0)
        return outcome

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
        outcome = await self._value(task, text, scorers, None if other is None else clean(other))
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
                "scorer %s failed on an answer to task %s, which earns 0 (told once; the part scorer_failed "
                "counts them): %s",
                names,
                task.id,
                outcome.detail,
            )
        return Reward(0.0, {"scorer_failed": 1.0}, f"the answer broke the scorer: {outcome.detail}")

    async def _unsound(self, task: Task, scorers: Scorers) -> str:
        """Why this row cannot be judged whatever the answer, "" if it can."""
        key = (task.id, scorers)
        if key not in self._sound:
            reason = await self._try_without_answer(task, scorers)
            if len(self._sound) >= _REMEMBERED:
                self._sound.clear()
            self._sound[key] = reason
        return self._sound[key]

    async def _try_without_answer(self, task: Task, scorers: Scorers) -> str:
        gold = await self._run("gold", scorers, task)
        if gold.kind != "value":
            return f"bad gold answer: {gold.detail}"
        for name, _ in scorers:
            if name in BUILT_IN:
                continue
            outcome = gold
            for probe in (task.answer, _CONSTANT):
                outcome = await self._value(task, str(probe), ((name, 1.0),))
                if outcome.kind in ("value", "late"):
                    break
            if outcome.kind != "value":
                return f"scorer {name} fails on the gold answer too: {outcome.detail}"
        return ""

    async def _value(self, task: Task, text: str, scorers: Scorers, other: str | None = None) -> Outcome:
        """What scorers make of a text; those marked by `base.reads_with` read it first, without the gold."""
        read: dict[str, object] = {}
        for name, _ in scorers:
            if name not in BUILT_IN and await self._reads(name):
                outcome = await self._run("read", ((name, 1.0),), task, text)
                if outcome.kind != "value":
                    return outcome
                read[name] = outcome.read
        return await self._run("score", scorers, task, text, read, other)

    async def _reads(self, name: str) -> bool:
        try:
            return name in (await self._ready(((name, 1.0),))).reads
        except (ConfigError, SetupError, SandboxFault):
            return False  # said by the run that follows

    async def _judged(self, task: Task, text: str) -> Reward:
        if self._judge is None:
            return Reward(None, detail="scorer 'judge' needs the settings reward.judge (base_url, model)")
        reward = await self._judge.score(task, text)
        fallback = self._judge.settings.fallback
        if reward.value is not None or fallback is None:
            return reward
        outcome = await self._run("score", ((fallback, 1.0),), task, text)
        if outcome.kind != "value":
            return Reward(None, detail=f"{reward.detail}; fallback {fallback}: {outcome.detail}")
        return Reward(outcome.value, {"judge_fallback": 1.0}, f"scored by {fallback}: {reward.detail}")

    def _scorers_of(self, task: Task) -> Scorers:
        return self._scorers or ((task.scorer, 1.0),)

    async def _gold(self, task: Task) -> Outcome:
        return await self._run("gold", _rules(self._scorers_of(task)), task)

    async def _run(
        self,
        do: str,
        scorers: Scorers,
        task: Task,
        text: str = "",
        read: Mapping[str, object] | None = None,
        other: str | None = None,
    ) -> Outcome:
        item = {
            "do": do,
            "scorers": scorers,
            "answer": text,
            "read": read or {},
            "other": other,
            "task": task_item(task, gold=do != "read"),
        }
        # A gold answer is the user's own text: looking at it evaluates nothing of the policy's.
        together = do == "gold" or all(name in _TOGETHER or _own_verifier(name, task) for name, _ in scorers)
        while True:
            try:
                lanes = await self._ready(scorers)
            except (ConfigError, SetupError, SandboxFault) as error:
                return Outcome("down", detail=str(error))
            outcome = await lanes.run(item, together=together)
            if outcome.kind != "down":
                return outcome
            async with self._renewing:  # lanes that are being renewed are down for that alone
                if lanes is self._lanes or self._lanes is None:
                    return outcome

    async def _ready(self, scorers: Scorers) -> Lanes:
        """The lanes, with these scorers loaded.

        Raises:
            ConfigError: one is unknown.
            SetupError, SandboxFault: workers cannot be started again.
        """
        if self._lanes is None:
            raise RuntimeError("the scoring pool is not running; enter it with 'async with'")
        own = tuple(name for name in own_scorers([name for name, _ in scorers]) if name not in self._loaded)
        if own or self._lanes.stopped:
            # In a task of its own: an answer that is cancelled must not leave the pool between two states.
            await asyncio.shield(asyncio.ensure_future(self._renew(own)))
        return self._lanes

    async def _renew(self, names: tuple[str, ...]) -> None:
        """Load further scorers: a row has named what no data source did, and its files must be shown."""
        async with self._renewing:
            new = tuple(name for name in names if name not in self._loaded)
            if self._lanes is None or not (new or self._lanes.stopped):
                return
            await asyncio.to_thread(find_modules, new, beside=self._beside)
            self._loaded += new
            await self._lanes.stop()
            await self._place.close()
            self._lanes = await self._open()

    async def _open(self) -> Lanes:
        """Start workers with what is to be loaded.

        Raises:
            SetupError: no isolation can be had here.
        """
        show = await asyncio.to_thread(find_modules, own_scorers(self._loaded), beside=self._beside)
        places = [SHOWN_BELOW, *dict.fromkeys(str(path.parent) for path in show)]
        await self._place.open(show)
        lanes = Lanes(
            self._place,
            {"scorers": self._loaded, "path": places},
            workers=self._workers,
            timeout=self._timeout,
            memory_mb=self._memory_mb,
        )
        await lanes.start()
        return lanes

    async def _stop(self) -> None:
        await self._stack.aclose()
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            await lanes.stop()
        await self._place.close()


def _own_verifier(name: str, task: Task) -> bool:
    """Whether a verifier of ours, which evaluates nothing, looks at the answer."""
    return name == "reasoning_gym" and task.metadata.get("dataset") in VERIFIERS


def _rules(scorers: Scorers) -> Scorers:
    """Those that are functions."""
    return tuple((name, weight) for name, weight in scorers if name != JUDGE)
