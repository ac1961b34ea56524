"""What an evaluation runs: parts of tasks, modes, samples, seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation.summary import evaluation_requests
from sandbox_rl.policies.base import Sampling
from sandbox_rl.rollout import EpisodeRequest
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
        share: (index, count): which of the episodes this process runs; all processes share one journal.

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
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
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
        return [
            (part, request)
            for start, part in self._starts()
            for request in evaluation_requests(
                part.tasks, samples=part.samples, seed=self.seed, label=mode, start=start
            )
        ]

    @property
    def episodes(self) -> int:
        """How many episodes there are, all modes together."""
        return len(self.modes) * sum(len(part.tasks) * part.samples for part in self.parts)

    def _starts(self) -> Iterator[tuple[int, Part]]:
        start = 0
        for part in self.parts:
            yield start, part
            start += len(part.tasks)


def parts_by_domain(tasks: Sequence[Task], samples: int) -> tuple[Part, ...]:
    """The parts of a recipe's tasks: one per domain, by name."""
    domains: dict[str, list[Task]] = {}
    for task in tasks:
        domains.setdefault(task.domain, []).append(task)
    return tuple(Part(domain, domains[domain], samples) for domain in sorted(domains))
