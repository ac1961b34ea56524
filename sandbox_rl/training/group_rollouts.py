"""TRL's `rollout_func`: task ids in, rolled out in groups, scored token rows out.

The contract of `rollout_func` in TRL 1.16 (each line pinned by a test in tests/smoke):
prompts arrive repeated `num_generations` times; rows go back in order and one per prompt, which TRL
does not check and so we do; a reward of None takes a row out of its group's baseline; `env_mask`
marks with 1 what the loss is taken over: what the policy sampled, in rows that have a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.audit.rows import TokenClass
from sandbox_rl.audit.samples import SampleAudit
from sandbox_rl.journal import Journal, JournalObserver
from sandbox_rl.ledger import SampleEnd
from sandbox_rl.metrics import group_metrics, rollout_metrics
from sandbox_rl.observer import Observer, Observers
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.rollout.order import of_group
from sandbox_rl.rollout.over_sampling import OverSampling
from sandbox_rl.training.agreement import together
from sandbox_rl.training.curriculum import Curriculum, outcome_of
from sandbox_rl.training.estimator import Estimator, to_rows
from sandbox_rl.training.generations import GenerationLedger, Generations
from sandbox_rl.training.groups import NumberedGroup, group_requests, left_out_group
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.refill import Chosen, Drawn, Generation, Refilled, refill
from sandbox_rl.training.reuse import FinishedEpisodes
from sandbox_rl.training.views import TrainerView
from sandbox_rl.types import Rollout, Task


def outcome_reward(
    prompts: Sequence[str],
    signal: Sequence[float | None],
    log_metric: Callable[[str, float], None],
    **columns: Any,
) -> list[float | None]:
    """TRL's reward function: hands on what the rollouts were scored with, and their metrics."""
    for name, value in columns["rollout_metrics"][0].items():
        log_metric(name, value)
    return list(signal)


@dataclass(eq=False)
class GroupRollouts:
    """TRL's `rollout_func`: task ids in, scored token rows out.

    Which tasks are rolled out is decided here, by the groups' numbers, whatever the trainer names.

    Args:
        engine: entered already, living in `loop`.
        tasks: by id.
        rank, world: of this process, and how many there are.
        shuffle: whether each pass over the tasks has an order of its own.
        curriculum: draws the tasks and refills groups that teach nothing.
        over_sampling: starts more groups than are trained on and cancels the slowest; no curriculum then.
        journal: gets every episode as it happens.
        ledger: is told which groups the trainer gets, and which it does not.
        again: step → how often it was sampled before; part of the episodes' ids.
        finished: episodes that an earlier start of the run has sampled.
        observer: sees the episodes as they happen.
        audit: is told what was sampled before the trainer gets it.
    """

    engine: RolloutEngine
    loop: LoopThread
    tasks: Mapping[str, Task]
    _: KW_ONLY
    estimator: Estimator
    seed: int
    eos_id: int
    rank: int = 0
    world: int = 1
    shuffle: bool = True
    curriculum: Curriculum | None = None
    over_sampling: OverSampling | None = None
    journal: Journal | None = None
    ledger: GenerationLedger | None = None
    observer: Observer | None = None
    audit: SampleAudit | None = None
    again: Callable[[int], int] = lambda step: 0
    finished: FinishedEpisodes | None = None

    def __post_init__(self) -> None:
        assert self.curriculum is None or self.over_sampling is None, "checked with the recipe"
        self._ids = list(self.tasks)
        self._last: int | None = None
        self._taken: set[str] = set()

    def __call__(self, prompts: Sequence[str], trainer: TrainerView) -> dict[str, list[Any]]:
        """Roll out one generation batch of this rank.

        Raises:
            InfraFault: every episode failed on our side.
        """
        count, rest = divmod(len(prompts), trainer.num_generations)
        assert not rest, f"TRL sent {len(prompts)} prompts that are not groups of {trainer.num_generations}"
        now = self._generation(trainer, count)
        self.engine.occupancy.take()  # what an evaluation left
        over_sampled = self.over_sampling is not None
        drawn = self._draw_over_sampled(now, count) if over_sampled else self._draw(now, count)
        refilled = self._refill(now, drawn.groups)
        self._tell(now, drawn, refilled)
        rows = to_rows(
            [group.rollouts for group in refilled.groups], estimator=self.estimator, eos_id=self.eos_id
        )
        assert len(rows["prompt_ids"]) == len(prompts), "TRL needs one row per prompt"
        # Of the groups as drawn: refilling selects, so what is trained on says nothing about the policy.
        as_drawn = [group.rollouts for group in drawn.groups]
        everyone = [rollout for group in as_drawn for rollout in group]
        metrics = rollout_metrics(everyone) | group_metrics(as_drawn)
        metrics |= dict(refilled.metrics) | self.engine.occupancy.take() | drawn.metrics
        return {**rows, "rollout_metrics": [metrics] * len(prompts)}

    def _generation(self, trainer: TrainerView, local: int) -> Generation:
        """The one that is asked for; TRL does not say which."""
        generations, step = Generations.of(trainer.args), int(trainer.state.global_step)
        number = generations.count(step) if self._last is None else self._last + 1
        if (begins := generations.step_of(number)) != step:
            raise RuntimeError(f"generation {number} begins after {begins} updates, TRL asks after {step}")
        self._last = number
        first = (number * self.world + self.rank) * local
        return Generation(number, step, first, trainer.num_generations, self.again(step))

    def _task_of(self, group: int) -> str:
        return of_group(self._ids, group, seed=self.seed, shuffle=self.shuffle)

    def _requests(
        self, now: Generation, number: int, task_id: str, *, refill: int | None = None, retried: bool = False
    ) -> list[EpisodeRequest]:
        return group_requests(
            self.tasks[task_id],
            number,
            seed=self.seed,
            size=now.size,
            again=now.again,
            refill=refill,
            retried=retried,
        )

    def _observers(self, now: Generation) -> Observer:
        """Whoever sees the episodes of a generation."""
        if self.journal is None:
            return Observers(self.observer)
        context = {"phase": "train", "step": now.step}
        return Observers(JournalObserver(self.journal, lambda _: context), self.observer)

    def _of_earlier(self) -> dict[str, Any]:
        """What the engine is told of episodes that are finished already."""
        finished = self.finished
        if finished is None or not finished.places:
            return {}

        def take(request: EpisodeRequest) -> Rollout | None:
            rollout = finished.rollout(request)
            if rollout is not None:
                self._taken.add(rollout.trajectory.episode_id)
                Observers(self.observer).rolled_out(request, rollout)
            return rollout

        return {"finished": take}

    def _roll_out(
        self, now: Generation, requests: Sequence[Sequence[EpisodeRequest]]
    ) -> list[Sequence[Rollout]]:
        """A group for each list of requests."""
        flat = [request for group in requests for request in group]
        running = self.engine.run(flat, observer=self._observers(now), **self._of_earlier())
        rollouts = iter(self.loop.run_episodes(running, of_step=True))
        return [[next(rollouts) for _ in group] for group in requests]

    def _draw(self, now: Generation, count: int) -> Drawn:
        """A fault of one process is every process's."""
        names = [self._task_of(now.first + place) for place in range(count)]
        if self.curriculum is not None:
            names = self.curriculum.draw(names, now.number)
        requests = [self._requests(now, now.first + place, name) for place, name in enumerate(names)]
        with together():
            found = self._roll_out(now, requests)
        return Drawn(tuple(NumberedGroup(now.first + i, None, group) for i, group in enumerate(found)))

    def _draw_over_sampled(self, now: Generation, count: int) -> Drawn:
        """No step waits for its slowest groups (`rollout.over_sample`)."""
        assert self.over_sampling is not None
        plan = self.over_sampling.plan(count)
        requests = [
            self._requests(now, group, self._task_of(group), retried=bool(plan.waited))
            for group in plan.groups
        ]
        with together():
            running = self.engine.run_groups(
                requests, keep=plan.keep, observer=self._observers(now), **self._of_earlier()
            )
            found = self.loop.run_episodes(running, of_step=True)
        metrics = self.over_sampling.record(plan, now.number, found.seconds, found.cut_after)
        cut = [
            left_out_group(group, asked[0].task.id, [request.id for request in asked], SampleEnd.CUT)
            for place, (group, asked) in enumerate(zip(plan.groups, requests, strict=True))
            if place not in found.ended
        ]
        groups = [NumberedGroup(plan.groups[place], None, group) for place, group in found.ended.items()]
        return Drawn(tuple(groups), tuple(cut), found.cut, metrics)

    def _refill(self, now: Generation, drawn: Sequence[NumberedGroup]) -> Refilled:
        curriculum = self.curriculum
        if curriculum is None or not curriculum.settings.refill_rounds:
            return Refilled(tuple(drawn))

        def roll_out(chosen: Sequence[Chosen], number: int) -> Sequence[Sequence[Rollout]]:
            return self._roll_out(now, self._substitutes(now, chosen, number))

        return refill(drawn, curriculum, now.number, roll_out)

    def _substitutes(
        self, now: Generation, chosen: Sequence[Chosen], number: int
    ) -> list[list[EpisodeRequest]]:
        """Of a round of refilling."""
        return [self._requests(now, now.first + place, name, refill=number) for place, name in chosen]

    def _tell(self, now: Generation, drawn: Drawn, refilled: Refilled) -> None:
        """Everybody who wants to know what was rolled out, before the trainer gets it."""
        everything = (*refilled.groups, *refilled.left_out)
        with together():
            if self.journal is not None:
                for rollout in drawn.cut_rollouts:
                    self.journal.cancelled(rollout.trajectory.episode_id)
                if self.finished is not None:  # of these groups, but nobody has asked for them again
                    known = self.finished.of_groups(group.number for group in refilled.groups)
                    if unasked := known - self._taken:
                        self.journal.replaced(sorted(unasked))
                self.journal.sync()
        if self.curriculum is not None:
            self.curriculum.record([outcome_of(group.rollouts) for group in everything])
        if self.audit is not None:
            left_out = {
                TokenClass.REFILLED: [r for group in refilled.left_out for r in group.rollouts],
                TokenClass.CUT: drawn.cut_rollouts,
            }
            handed = [group.rollouts for group in refilled.groups]
            self.audit.rolled_out(handed, now.step, left_out=left_out)
        if self.ledger is not None:
            failed = [
                left_out_group(
                    now.first + place,
                    name,
                    [request.id for request in requests],
                    SampleEnd.NOT_JUDGED,
                    refill=number,
                )
                for number, chosen in refilled.failed.items()
                for (place, name), requests in zip(
                    chosen, self._substitutes(now, chosen, number), strict=True
                )
            ]
            left = [group.left_out(SampleEnd.REFILLED) for group in refilled.left_out]
            self.ledger.rolled_out(now.number, refilled.groups, (*left, *drawn.cut, *failed))
