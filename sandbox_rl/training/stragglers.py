"""TRL's `rollout_func` with early stop: no step waits for its slowest groups (`rollout.over_sample`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl import GRPOTrainer

from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.rollout.tail_batches import TailBatches, of_group
from sandbox_rl.seeds import derive_seed
from sandbox_rl.training.group_rollouts import GroupRollouts
from sandbox_rl.types import Rollout

__all__ = ["TailBatchRollouts"]


class TailBatchRollouts(GroupRollouts):
    """Groups come by number, in passes over the tasks, whatever tasks the trainer names.

    Args:
        tail: plans the steps; saved with the checkpoints.
        on_cut: called with the step and the episodes that had ended in groups that were cancelled.
        others: those of `GroupRollouts`; no curriculum.
    """

    def __init__(
        self,
        *args: Any,
        tail: TailBatches,
        on_cut: Callable[[int, Sequence[Rollout]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        assert self._curriculum is None, "checked with the recipe"
        self._tail = tail
        self._on_cut = on_cut
        self._ids = list(self._tasks)
        self._metrics: dict[str, float] = {}
        self._last_cut: Sequence[Rollout] = ()

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Roll out one generation batch of this rank.

        Raises:
            InfraFault: every episode failed on our side.
        """
        rows = super().__call__(prompts, trainer)
        return {**rows, "rollout_metrics": [found | self._metrics for found in rows["rollout_metrics"]]}

    def _cut(self) -> Sequence[Rollout]:
        return self._last_cut

    def _roll_out(
        self, task_ids: Sequence[str], first: int, step: int, size: int
    ) -> Sequence[Sequence[Rollout]]:
        plan = self._tail.plan(len(task_ids))
        requests = []
        for place, group in enumerate(plan.groups):
            task = self._tasks[of_group(self._ids, group, seed=self._seed)]
            requests.append(
                [
                    EpisodeRequest(
                        id=f"train-{step:06d}-{self._rank}-{place * size + sample:04d}",
                        task=task,
                        seed=derive_seed(self._seed, task.id, group, sample),
                    )
                    for sample in range(size)
                ]
            )
        found = self._loop.run(self._engine.run_groups(requests, keep=plan.keep, on_rollout=self._on_rollout))
        self._metrics = self._tail.record(plan, step, found.seconds, found.cut_after)
        self._last_cut = found.cut
        if self._on_cut is not None and found.cut:
            self._on_cut(step, found.cut)
        return list(found.ended.values())
