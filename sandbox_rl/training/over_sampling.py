"""TRL's `rollout_func` with early stop: no step waits for its slowest groups (`rollout.over_sample`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl import GRPOTrainer

from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.rollout.over_sampling import OverSampling
from sandbox_rl.seeds import derive_seed
from sandbox_rl.training.agreement import together
from sandbox_rl.training.group_rollouts import Generation, GroupRollouts
from sandbox_rl.types import Rollout

__all__ = ["OverSampledRollouts"]


class OverSampledRollouts(GroupRollouts):
    """Groups come by number, in passes over the tasks, whatever tasks the trainer names.

    Args:
        over_sampling: plans the steps; saved with the checkpoints.
        on_cut: called with the step and the episodes that had ended in groups that were cancelled.
        others: those of `GroupRollouts`; no curriculum.
    """

    def __init__(
        self,
        *args: Any,
        over_sampling: OverSampling,
        on_cut: Callable[[int, Sequence[Rollout]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        assert self._curriculum is None, "checked with the recipe"
        self._over_sampling = over_sampling
        self._on_cut = on_cut
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

    def _roll_out_drawn(
        self, now: Generation, wanted: Sequence[tuple[str, tuple[int | str, ...]]]
    ) -> Sequence[Sequence[Rollout]]:
        plan = self._over_sampling.plan(len(wanted))
        requests = []
        for place, group in enumerate(plan.groups):
            task = self._tasks[self._task_of(group)]
            requests.append(
                [
                    EpisodeRequest(
                        id=now.episode_id(self._rank, place * now.size + sample),
                        task=task,
                        seed=derive_seed(self._seed, task.id, group, sample),
                    )
                    for sample in range(now.size)
                ]
            )
        with together():
            found = self._loop.run(self._engine.run_groups(requests, keep=plan.keep, observer=self._observer))
        self._metrics = self._over_sampling.record(plan, now.number, found.seconds, found.cut_after)
        self._last_cut = found.cut
        with together():
            if self._on_cut is not None and found.cut:
                self._on_cut(now.step, found.cut)
        return list(found.ended.values())
