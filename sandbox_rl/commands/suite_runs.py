"""A suite that is run every n updates of a training run, on the very policy that is being trained."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox_rl.commands.parts import build_render, build_scoring, build_toolbox
from sandbox_rl.commands.suite import load_parts
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.suite import Suite, find_suite, load_suite
from sandbox_rl.errors import InfraFault
from sandbox_rl.evaluation.page import mean_text, page
from sandbox_rl.evaluation.plan import EvaluationPlan, Part
from sandbox_rl.evaluation.results import Results
from sandbox_rl.evaluation.run import results_of_journal, run_evaluation
from sandbox_rl.journal import Journal
from sandbox_rl.rollout import RolloutEngine
from sandbox_rl.runs.directory import set_aside, write_atomically
from sandbox_rl.training.agreement import together
from sandbox_rl.training.callbacks import for_trackers

if TYPE_CHECKING:
    from sandbox_rl.runs.session import Session

__all__ = ["SuiteRuns", "suite_metrics"]


class SuiteRuns:
    """Measures with the run's own sandboxes, chat format and policy; everything else is the suite's.

    Each measurement has a directory of its own, `suites/<name>-<step>`, as `sandbox-rl eval` writes it.
    """

    def __init__(
        self,
        suite: Suite,
        parts: tuple[Part, ...],
        skipped: Mapping[str, str],
        *,
        every_steps: int,
        base_dir: Path,
    ) -> None:
        self._suite = suite
        self._base_dir = base_dir
        self._parts = parts
        self._skipped = skipped
        self.every_steps = every_steps

    @classmethod
    def of(cls, recipe: Recipe) -> SuiteRuns | None:
        """What the recipe asks for; None where it asks for none.

        Raises:
            ConfigError, DataError: what is wrong with the suite, before anything is started.
        """
        schedule = recipe.evaluation.suite
        if schedule is None:
            return None
        path = find_suite(schedule.path)
        suite = load_suite(path)
        base_dir = path.resolve().parent
        parts, skipped = load_parts(suite, base_dir=base_dir)
        return cls(suite, parts, skipped, every_steps=schedule.every_steps, base_dir=base_dir)

    @property
    def summary(self) -> str:
        """One line for a person."""
        tasks = sum(len(part.tasks) for part in self._parts)
        left_out = f"; left out: {', '.join(self._skipped)}" if self._skipped else ""
        return f"{self._suite.name}, {tasks} tasks every {self.every_steps} updates{left_out}"

    def measure(self, session: Session, trainer: Any) -> Results:
        """Run the suite on the policy as it is now, shared among all processes, and log what came out.

        What fails on our side is counted in the results and ends nothing.
        """
        trainer.sync_policy()
        step, state = int(trainer.state.global_step), session.state
        output = session.records.run.path / "suites" / f"{self._suite.name}-{step:06d}"
        journal = output / "episodes.jsonl"
        with together():
            if state.is_main_process:
                set_aside(
                    output
                )  # a run that was killed and resumed comes here again, with weights of its own
                with Journal(journal):
                    pass
        share = (state.process_index, state.num_processes)
        plan = self._plan(session, share)
        episodes = len(plan.requests("sandbox")[share[0] :: share[1]])
        bar_of = session.display.progress(f"Suite {self._suite.name}, step {step}", episodes)
        with together(), bar_of as bar:
            try:
                session.loop.run(
                    run_evaluation(plan, {"sandbox": self._engine(session)}, journal, on_episode=bar.advance)
                )
            except InfraFault as error:
                session.display.say(f"Suite {self._suite.name}, step {step}: {error}")
        with together():
            results = results_of_journal(plan, journal)
            if state.is_main_process:
                write_atomically(output / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
                write_atomically(output / "results.md", page([results]))
        found = results.modes["sandbox"]
        judged = f"of {len(found.tasks)} tasks judged"
        missing = f", {found.unjudged} episodes not judged" if found.unjudged else ""
        accuracy = mean_text(found.accuracy)
        session.display.say(f"Suite {self._suite.name}, step {step}: {accuracy} {judged}{missing}")
        # TRL's own log() would mix in what training has gathered since its last call.
        trainer.callback_handler.on_log(
            trainer.args, trainer.state, trainer.control, for_trackers(suite_metrics(results))
        )
        return results

    def _plan(self, session: Session, share: tuple[int, int]) -> EvaluationPlan:
        suite = self._suite
        return EvaluationPlan(
            suite.name,
            session.plan.recipe.model.path,
            self._parts,
            ("sandbox",),
            suite.seed,
            suite.sampling,
            self._skipped,
            share,
        )

    @asynccontextmanager
    async def _engine(self, session: Session) -> AsyncIterator[RolloutEngine]:
        """Policy and sandboxes are the run's and stay up; only the scorers are started and ended."""
        recipe = self._suite
        engine = RolloutEngine(
            agent=session.engine.agent,
            backend=session.engine.backend,
            scoring=build_scoring(recipe, self._base_dir),
            toolbox=build_toolbox(recipe),
            render=build_render(recipe, self._base_dir),
            episode=recipe.episode,
            sampling=self._suite.sampling,
            settings=recipe.rollout,
        )
        async with engine.scoring:
            yield engine


def suite_metrics(results: Results) -> dict[str, float]:
    """Names below `suite/<name>/` for trackers and `metrics.jsonl`."""
    found = results.modes["sandbox"]
    out: dict[str, float] = {"unjudged": float(found.unjudged)}
    if found.accuracy is not None:
        out["accuracy"] = found.accuracy.value
    if found.macro is not None:
        out["macro"] = found.macro
    out |= {f"accuracy/{part}": value.accuracy.value for part, value in found.parts.items()}
    out |= {f"pass_at_{k}": value for k, value in found.pass_at.items()}
    out |= found.means
    out |= {f"stop/{stop}": share for stop, share in found.stops.items()}
    return {f"suite/{results.name}/{name}": value for name, value in out.items()}
