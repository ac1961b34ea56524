"""Scorers run on workers: the one owner of the workers, of what they have loaded and of their renewal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sandbox_rl.errors import ConfigError, SandboxFault, SetupError
from sandbox_rl.rewards.base import BUILT_IN
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.connection import Outcome
from sandbox_rl.rewards.gym_verifiers import VERIFIERS
from sandbox_rl.rewards.lanes import Lanes
from sandbox_rl.rewards.modules import SHOWN_BELOW, find_modules, own_scorers
from sandbox_rl.rewards.places import Place
from sandbox_rl.rewards.scoring import task_item
from sandbox_rl.types import Task

logger = logging.getLogger(__name__)

_TOGETHER = frozenset({"math", "choice", "exact", "f1", "rouge_l", "numeric", "rules"})
"""Scorers that compare texts: a process may score several answers, until one is about to be evaluated."""

_GYM = "reasoning_gym"

Scorers = tuple[tuple[str, float], ...]
"""(name, weight) of each."""


class Runner:
    """Runs scorers on texts. `start` it first and `stop` it at the end, in one event loop.

    Args:
        place: where workers run.
        settings: the number of workers and the bounds of each answer.
        names: of the scorers that workers load as they start.
        beside: a directory in which scorers of your own are looked for, besides the Python path.
    """

    def __init__(
        self, place: Place, settings: RewardSettings, names: tuple[str, ...], beside: Path | None
    ) -> None:
        self._place = place
        self._settings = settings
        self._loaded = names
        self._beside = beside
        self._lanes: Lanes | None = None
        self._renewing = asyncio.Lock()

    async def start(self) -> None:
        """Start the workers; `stop` it also where that fails.

        Raises:
            ConfigError: a scorer cannot be loaded.
            SetupError, SandboxFault: workers cannot be started here.
        """
        if self._place.isolation == "none":
            logger.warning(
                "reward.isolation is none: an answer that gets a scorer to run code runs it as this user"
            )
        self._lanes = await self._open()

    async def stop(self) -> None:
        """End the workers; idempotent."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            await lanes.stop()
        await self._place.close()

    async def value(
        self, task: Task, text: str, scorers: Scorers, other: str | None = None, *, ours: bool = False
    ) -> Outcome:
        """What scorers make of a text; those marked by `base.reads_with` read it first, without the gold.

        Args:
            other: the other reading of the text, see `escapes`.
            ours: the text is no policy's, so it may share a process with others like it.
        """
        read: dict[str, object] = {}
        for name, _ in scorers:
            if name not in BUILT_IN and await self.reads(name):
                outcome = await self.run("read", ((name, 1.0),), task, text, ours=ours)
                if outcome.kind != "value":
                    return replace(outcome, kind="unread") if outcome.kind == "error" else outcome
                read[name] = outcome.read
        return await self.run("score", scorers, task, text, read, other, ours=ours)

    async def reads(self, name: str) -> bool:
        """Whether a scorer reads answers by itself; False where workers are not available."""
        try:
            return name in (await self._ready(((name, 1.0),))).reads
        except (ConfigError, SetupError, SandboxFault):
            return False  # said by the run that follows

    async def run(
        self,
        do: str,
        scorers: Scorers,
        task: Task,
        text: str = "",
        read: Mapping[str, object] | None = None,
        other: str | None = None,
        *,
        ours: bool = False,
    ) -> Outcome:
        """What became of one item; never raises but on cancellation. For `do` see `scoring`.

        Args:
            read: what scorers marked by `base.reads_with` have made of the text.
            other, ours: see `value`.
        """
        item = {
            "do": do,
            "scorers": scorers,
            "answer": text,
            "read": read or {},
            "other": other,
            "task": task_item(task, gold=do != "read"),
        }
        # A gold answer is the user's own text: looking at it evaluates nothing of the policy's.
        together = (
            ours or do == "gold" or all(name in _TOGETHER or _own_verifier(name, task) for name, _ in scorers)
        )
        dataset = str(task.metadata.get("dataset", "")) if _GYM in dict(scorers) else ""
        while True:
            try:
                lanes = await self._ready(scorers)
            except (ConfigError, SetupError, SandboxFault) as error:
                return Outcome("down", detail=str(error))
            outcome = await lanes.run(item, together=together, dataset=dataset)
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
            SetupError: no isolation is available here.
        """
        show = await asyncio.to_thread(find_modules, own_scorers(self._loaded), beside=self._beside)
        places = [SHOWN_BELOW, *dict.fromkeys(str(path.parent) for path in show)]
        await self._place.open(show)
        lanes = Lanes(
            self._place,
            {"scorers": self._loaded, "path": places},
            workers=self._settings.workers,
            timeout=self._settings.timeout_s,
            memory_mb=self._settings.memory_mb,
        )
        await lanes.start()
        return lanes


def _own_verifier(name: str, task: Task) -> bool:
    """Whether a verifier of ours, which evaluates nothing, looks at the answer."""
    return name == _GYM and task.metadata.get("dataset") in VERIFIERS
