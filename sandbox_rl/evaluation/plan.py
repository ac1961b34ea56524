"""What an evaluation runs: parts of tasks, modes, samples, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.base import Sampling
from sandbox_rl.rollout import EpisodeRequest
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Task

__all__ = ["MODES", "EvaluationPlan", "Part", "parts_by_domain"]

MODES = ("sandbox", "plain")


@dataclass(frozen=True, slots=True)
class Part:
    """Tasks that are reported in one line, each run `samples` times."""

    name: str
    tasks: Sequence[Task]
    samples: int = 1


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Every task of every part, `samples` times in every mode.

    Args:
        modes: of `MODES`.
        skipped: part → why it is not there.
        label: begins the ids of the episodes, where the mode does not: one mode can be measured several times
            in one journal.
        share: (index, count): which of the episodes this process runs.

    Raises:
        ConfigError: two tasks have one id, or there is no task.
    """

    name: str
    model: str
    parts: tuple[Part, ...]
    modes: tuple[str, ...]
    seed: int
    sampling: Sampling
    skipped: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.label and len(self.modes) > 1:
            raise ValueError(
                f"label {self.label!r} with modes {self.modes}, expected one mode: ids would clash"
            )
        seen: dict[str, str] = {}
        for part in self.parts:
            for task in part.tasks:
                if task.id in seen:
                    raise ConfigError(
                        f"{self.name}: task {task.id!r} is in part {seen[task.id]!r} and again in "
                        f"{part.name!r}; give their sources other seeds or names"
                    )
                seen[task.id] = part.name
        if not seen:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise ConfigError(
                f"{self.name}: there is no task to evaluate{f' ({why})' if why else ''}; raise "
                "data.held_out, a source's size, or add a part"
            )

    def requests(self, mode: str) -> list[tuple[Part, EpisodeRequest]]:
        """Equal plans give equal requests. Both modes share the seeds of a task's samples."""
        tasks = [(part, task) for part in self.parts for task in part.tasks]
        return [
            (
                part,
                EpisodeRequest(
                    id=f"{self.label or mode}-{index:05d}-{sample}",
                    task=task,
                    seed=derive_seed(self.seed, "evaluation", task.id, sample),
                ),
            )
            for index, (part, task) in enumerate(tasks)
            for sample in range(part.samples)
        ]

    def own_requests(self, mode: str) -> list[tuple[Part, EpisodeRequest]]:
        """Those of this process."""
        index, count = self.share
        return self.requests(mode)[index::count]

    @property
    def episodes(self) -> int:
        """How many episodes there are, all modes together."""
        return len(self.modes) * sum(len(part.tasks) * part.samples for part in self.parts)


def parts_by_domain(tasks: Sequence[Task], samples: int) -> tuple[Part, ...]:
    """The parts of a recipe's tasks: one per domain, by name."""
    domains: dict[str, list[Task]] = {}
    for task in tasks:
        domains.setdefault(task.domain, []).append(task)
    return tuple(Part(domain, domains[domain], samples) for domain in sorted(domains))
