"""An asynchronous trainer on a tiny model, with rollouts that are there as soon as they are admitted."""

from __future__ import annotations

import queue
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from sandbox_rl.ledger import Ledger
from sandbox_rl.training.asynchronous.config import async_config
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.asynchronous.trainer import SandboxAsyncTrainer
from sandbox_rl.training.publication.base import UnsentWeights
from sandbox_rl.training.samples import FinishedGroup, finished_group
from sandbox_rl.types import Rollout
from tests.smoke.support import TOKENIZER, make_rollout, tiny_model

SIZE = 4
REWARDS = (1.0, 0.0, 0.25, 0.0)


class PlayedWeights(UnsentWeights):
    """Servers that take every weight; `published` has the steps."""

    def __init__(self) -> None:
        super().__init__(served=True)
        self.published: list[int] = []

    def publish(self, model: Any, step: int) -> int:
        self.published.append(step)
        return super().publish(model, step)


class PlayedRollouts:
    """A rollout worker whose episodes follow from a group's number.

    Args:
        weights: what they are sampled with.
        late: numbers whose episodes last so many updates.
        silent_after: numbers from which on nothing comes any more.
        failure: raised when the trainer asks how it goes.
    """

    def __init__(
        self,
        weights: Any = None,
        *,
        late: dict[int, int] | None = None,
        silent_after: int | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.rollout_buffer: queue.Queue[FinishedGroup] = queue.Queue()
        self.metrics_queue: queue.Queue[dict[str, float]] = queue.Queue()
        self.admitted: list[tuple[int, int]] = []
        self.weights = weights or PlayedWeights()
        self.asked = 0
        self._late = dict(late or {})
        self._held: list[FinishedGroup] = []
        self._silent_after = silent_after
        self._failure = failure

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check_health(self, stale_after_s: float) -> None:
        self.asked += 1
        if self._failure is not None:
            raise self._failure

    def group(self, number: int, version: int) -> FinishedGroup:
        """What becomes of a number."""
        return played_group(number, version)

    def admit(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.admitted.append((number, self.weights.version.value))
            if self._silent_after is not None and number >= self._silent_after:
                continue
            group = self.group(number, self.weights.version.value)
            if number in self._late:
                self._held.append(group)
            else:
                self.rollout_buffer.put(group)
        begun = dict(self.admitted)
        for group in [
            g for g in self._held if self.weights.version.value >= begun[g.number] + self._late[g.number]
        ]:
            self._held.remove(group)
            self.rollout_buffer.put(group)


def played_group(number: int, version: int) -> FinishedGroup:
    """The same tokens for the same number, as sampled with weights of that version."""
    return finished_group(played_rollouts(number, version), number=number, kind="rloo")


def played_rollouts(number: int, version: int) -> list[Rollout]:
    """The episodes of such a group."""
    rollouts = []
    for index, reward in enumerate(REWARDS):
        rollout = make_rollout(str(number), reward, seed=100 * number + index, turns=2, length=6)
        first = make_rollout(str(number), 0.0, seed=100 * number)
        noise = random.Random(number)
        turns = tuple(
            replace(
                turn,
                action=replace(
                    turn.action,
                    weight_version=version,
                    # About what a model that knows nothing gives: some ratios are clipped, some truncated.
                    logprobs=tuple(noise.gauss(-5.6, 0.6) for _ in turn.action.token_ids),
                ),
            )
            for turn in rollout.trajectory.turns
        )
        trajectory = replace(
            rollout.trajectory,
            turns=turns,
            prompt_ids=first.trajectory.prompt_ids,
            episode_id=f"{number}-{index}",
        )
        rollouts.append(replace(rollout, trajectory=trajectory))
    return rollouts


def save_model(directory: Path) -> None:
    """The model that trainers of this directory begin with."""
    if not (directory / "model").exists():
        tiny_model(TOKENIZER).save_pretrained(directory / "model")


def make_async_trainer(
    directory: Path,
    worker: PlayedRollouts,
    *,
    at_once: int = 3,
    callbacks: Sequence[Any] = (),
    progress: GroupProgress | None = None,
    stop: Any = lambda: False,
    stopped: Any = lambda: None,
    audit: Any = None,
    tokens: Any = None,
    **block: Any,
) -> SandboxAsyncTrainer:
    """A trainer; `block` is its recipe's `grpo`."""
    save_model(directory)
    progress = progress or GroupProgress()
    ledger = Ledger(directory / "ledger.jsonl")
    defaults = {
        "max_steps": 4,
        "num_generations": SIZE,
        "token_budget": 60,
        "save_steps": 100,
        "learning_rate": 1e-3,
        "max_grad_norm": 1e6,
    }
    return SandboxAsyncTrainer(
        model=str(directory / "model"),
        args=async_config(
            defaults | block,
            checkpoints=directory / "run",
            name="x",
            seed=0,
            max_tokens=50,
            longest=50,
            dtype=torch.float32,
        ),
        at_once=at_once,
        progress=progress,
        ledger=ledger,
        stop=stop,
        stopped=stopped,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=TOKENIZER,
        rollout_worker=worker,
        weights=worker.weights,
        audit=audit,
        tokens=tokens,
        saved=(ledger.commit,),
        callbacks=callbacks,
    )


def logged(trainer: SandboxAsyncTrainer) -> dict[str, list[float]]:
    """Name → values of all logged steps."""
    found: dict[str, list[float]] = defaultdict(list)
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            found[name].append(value)
    return found
