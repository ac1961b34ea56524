"""`--resume` means the same run: which one, whether it is done, and what of its recipe may be another now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from sandbox_rl.config.load import load_recipe
from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.errors import ConfigError
from sandbox_rl.ledger import Ledger
from sandbox_rl.lock import check_alone
from sandbox_rl.outputs import write_atomically
from sandbox_rl.runs.directory import RunDirectory, find_run, set_aside
from sandbox_rl.runs.history import FORMAT, History, known_results
from sandbox_rl.runs.leftovers import Leftovers, leftovers_of, set_aside_beyond
from sandbox_rl.tasks.load import TaskSet
from sandbox_rl.tasks.prompts import load_prompt_set
from sandbox_rl.training.agreement import of_first
from sandbox_rl.training.checkpoints import last_intact, remove_leftovers, step_of
from sandbox_rl.training.generations import Generations
from sandbox_rl.training.reuse import FinishedEpisodes
from sandbox_rl.training.views import RunArgs, SyncArgs

SETTLED = (
    *("seed", "model", "chat", "data", "tools", "mode", "estimator", "warmup", "curriculum"),
    *("rollout.over_sample", "policy.type", "grpo.shuffle_dataset", "grpo.optim"),
)
"""Blocks and fields that a run keeps permanently: another model, other tasks, another order, or a checkpoint
that would not fit. All others may change from a checkpoint on, and are recorded. Prompts keep their words,
wherever their files lie."""

OF_THE_DIRECTORY = ("name", "output_dir")
"""Said by `--resume` itself."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run to go on with.

    Args:
        checkpoint: the last intact one; None: it goes on from the beginning.
        damaged: newer ones, and what is wrong with each.
        changes: field → its value so far and from now on.
    """

    run: RunDirectory
    history: History
    checkpoint: Path | None
    damaged: Mapping[Path, str]
    changes: Mapping[str, tuple[Any, Any]]

    @classmethod
    def of(cls, recipe: Recipe, which: str) -> Earlier:
        """The run that `--resume` names, held against the recipe.

        Raises:
            ConfigError: there is none, or the recipe is another in what a run keeps.
        """
        run = find_run(Path(recipe.output_dir), recipe.name, which)
        history = History.read(run)
        history.check()
        of_first(lambda: check_alone(run.path))
        changes = dict(_changes(load_recipe(run.recipe), recipe))
        for field, (old, new) in changes.items():
            if any(field == name or field.startswith(f"{name}.") for name in SETTLED):
                raise ConfigError(
                    f"--resume: {field} is {new!r}, but the run {run.path} has {old!r}, expected the same; "
                    "set it back, or start a run of its own without --resume"
                )
        # It reads every file, and all must go on from one.
        checkpoint, damaged = of_first(lambda: last_intact(run.checkpoints))
        return cls(run, history, checkpoint, damaged, changes)

    @property
    def step(self) -> int:
        """Updates behind the checkpoint."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)

    def finished(self, recipe: Recipe) -> int | None:
        """The updates of a run that is done and is not asked for more; None otherwise."""
        done = self.history.finished_at
        if done is None or "grpo.num_train_epochs" in self.changes:
            return None
        # As the recipe says it: the model need not be in reach to tell whether there is more to do.
        return None if int(recipe.grpo.get("max_steps", -1)) > done else done

    def check(self, tasks: TaskSet, sizes: Mapping[str, Any], prompts: Mapping[str, str]) -> None:
        """Whether tasks, sizes and the words of prompts (`prompt_digests`) are those of the first start.

        Raises:
            ConfigError: which is not.
        """
        known = self.history.started_with("tasks")
        if known is not None and known != tasks_digest(tasks):
            raise ConfigError(
                f"--resume: data: the training tasks are not those that the run {self.run.path} was started "
                "with, expected the same files and options; restore them, or start a run of its own"
            )
        words = self.history.started_with("prompts") or prompts
        if changed := [domain for domain in prompts if words.get(domain) != prompts[domain]]:
            raise ConfigError(
                f"--resume: prompts: {changed[0]}.yaml has other words than when the run {self.run.path} was "
                "started, expected the same; restore them, or start a run of its own"
            )
        before = self.history.started_with("sizes") or sizes
        for name, value in sizes.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"--resume: {name} are {value} now, but the run {self.run.path} has {before.get(name)}, "
                    "expected the same; set grpo.per_device_train_batch_size, gradient_accumulation_steps, "
                    "steps_per_generation, num_iterations and the number of processes so that they are"
                )


def sizes_of(recipe: Recipe, args: RunArgs) -> dict[str, Any]:
    """What decides which episodes a group's number and an update stand for, by name."""
    sizes: dict[str, Any] = {"episodes per group": args.num_generations}
    if recipe.mode == "sync":
        generations = Generations.of(cast(SyncArgs, args))
        sizes["groups per generation"] = generations.groups
        sizes["generations per update"] = str(Fraction(generations.accumulation, generations.every))
    return sizes


def tasks_digest(tasks: TaskSet) -> str:
    """Of ids, prompts and answers in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for task in tasks:
        digest.update(json.dumps([task.id, task.domain, task.prompt, task.answer]).encode())
    return digest.hexdigest()


def prompt_digests(domains: Iterable[str], folders: Sequence[Path]) -> dict[str, str]:
    """Of the words around problems, by domain, whatever file they come from.

    Raises:
        ConfigError: a domain has no prompt set.
    """
    return {
        domain: hashlib.blake2b(
            json.dumps(asdict(load_prompt_set(domain, folders)), sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        for domain in sorted(set(domains))
    }


def begin(
    run: RunDirectory,
    earlier: Earlier | None,
    recipe: Recipe,
    *,
    tasks: TaskSet,
    sizes: Mapping[str, Any],
    prompts: Mapping[str, str],
    steps: int,
    processes: int,
) -> tuple[History, Leftovers]:
    """Bring a run's records to where training begins, before anything is added; on the main process only.

    Args:
        steps: updates that the recipe asks for; not above 0 where it does not say.

    Returns:
        The history, this start included, and what earlier starts have left.

    Raises:
        UserError: records that do not fit each other.
    """
    gone = Leftovers((), -1, FinishedEpisodes(run.journal))
    if earlier is None:
        history = History(run, ()).with_event(
            "started",
            0,
            format=FORMAT,
            tasks=tasks_digest(tasks),
            sizes=dict(sizes),
            prompts=dict(prompts),
            processes=processes,
        )
    else:
        history, step = earlier.history, earlier.step
        committed = Ledger.committed(run.ledger, earlier.checkpoint)
        again = _evaluates_again(earlier, steps)
        gone = leftovers_of(
            earlier.run, earlier.checkpoint, recipe, again=again, changes=earlier.changes, sizes=sizes
        )
        set_aside_beyond(run, step, start=history.starts, again=again, committed=committed)
        remove_leftovers(run.checkpoints)
        for damaged in earlier.damaged:  # their steps are done, and saved, again
            set_aside(damaged)
        for field, (old, new) in earlier.changes.items():
            history = history.with_event("changed", step, field=field, **{"from": old, "to": new})
        history = history.with_event(
            "resumed", step, replaced_to=gone.highest, reused=len(gone.finished.places), processes=processes
        )
    notes = "".join(f"# {line}\n" for line in history.changes)
    known = [(task.id, task.domain) for task in tasks]
    told = {"ids": [id for id, _ in known], "domains": [domain for _, domain in known]}
    write_atomically(run.tasks, json.dumps(told) + "\n")
    write_atomically(run.recipe, notes + resolved(recipe))
    return history, gone


def _evaluates_again(earlier: Earlier, steps: int) -> bool:
    """Whether the evaluation that belongs to the checkpoint's step was cut, and is done again."""
    if earlier.history.finished_at is not None:
        return False
    before = "before" in known_results(earlier.run)
    return 0 < steps <= earlier.step or (earlier.step == 0 and not before)


def _changes(old: Recipe, new: Recipe) -> Iterator[tuple[str, tuple[Any, Any]]]:
    before, after = (dict(_fields(recipe.model_dump(mode="json"))) for recipe in (old, new))
    for field in {**before, **after}:
        values = before.get(field), after.get(field)
        if values[0] != values[1] and field not in OF_THE_DIRECTORY:
            yield field, values


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their dotted paths; lists are leaves."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
