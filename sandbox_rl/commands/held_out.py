"""Held-out evaluation within a training run, shared among its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accelerate import PartialState
from accelerate.utils import gather_object

from sandbox_rl.display import Display
from sandbox_rl.evaluation import Evaluation, evaluation_requests, summarise
from sandbox_rl.journal import Journal
from sandbox_rl.observer import EachRollout
from sandbox_rl.rollout import EpisodeRequest, RolloutEngine
from sandbox_rl.training.agreement import together
from sandbox_rl.training.config import EvaluationSettings
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.types import Rollout, Task

__all__ = ["HeldOut"]


class HeldOut:
    """Evaluates the policy as it is now on the same tasks with the same seeds each time.

    Args:
        again: step → how often it was evaluated before, by starts of the run whose records were replaced.
        on_rollout: is told of every episode of this process.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        loop: LoopThread,
        journal: Journal,
        tasks: Sequence[Task],
        settings: EvaluationSettings,
        *,
        seed: int,
        state: PartialState,
        display: Display,
        again: Callable[[int], int] = lambda step: 0,
        on_rollout: Callable[[Rollout], None] = lambda rollout: None,
    ) -> None:
        self._on_rollout = on_rollout
        self._engine = engine
        self._loop = loop
        self._journal = journal
        self._tasks = list(tasks)[: settings.tasks]
        self._settings = settings
        self._seed = seed
        self._state = state
        self._display = display
        self._again = again

    def evaluate(self, label: str, step: int) -> Evaluation | None:
        """The evaluation over all processes, the same on each; None when it is switched off."""
        if not self._tasks:
            return None
        again = f"-r{times}" if (times := self._again(step)) else ""
        requests = evaluation_requests(
            self._tasks, samples=self._settings.samples, seed=self._seed, label=f"eval-{step:06d}{again}"
        )[self._state.process_index :: self._state.num_processes]
        with together(), self._display.progress(f"Evaluating {label}", len(requests)) as bar:

            def ended(_: EpisodeRequest, rollout: Rollout) -> None:
                bar.advance(rollout.reward.value)
                self._on_rollout(rollout)

            mine = self._loop.run(
                self._engine.run(
                    requests,
                    sampling=self._settings.sampling,
                    overlong="score",
                    observer=EachRollout(ended),
                )
            )
            for rollout in mine:
                self._journal.write(rollout, phase="eval", step=step)
        everyone: list[Rollout] = gather_object(mine) if self._state.num_processes > 1 else mine
        return summarise(everyone)
