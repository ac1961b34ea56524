"""What an evaluation runs: parts of tasks, modes, samples, seeds; and what makes two the same measurement.

That is kept in `evaluation.json` beside the journal. `--resume` compares it with what was asked for and names
the first thing that differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandbox_rl.agents.base import EpisodeRequest
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.base import Sampling
from sandbox_rl.seeds import derive_seed
from sandbox_rl.types import Task

MODES = ("sandbox", "plain")
FORMAT = 1
"""Of `evaluation.json`."""


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


def short_hash(*parts: bytes | str) -> str:
    """Sixteen hexadecimal digits that follow from the parts, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def task_key(task: Task) -> str:
    """Equal for tasks that ask and score the same: prompt, gold answer, files, scorer and prompt set."""
    files = [item for name in sorted(task.files) for item in (name, task.files[name])]
    return short_hash(task.prompt, task.answer, task.scorer, task.domain, *files)


def identity_of(
    plan: EvaluationPlan, *, model: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that results depend on, as JSON values.

    Args:
        model: what tells the model from others.
        settings: name → JSON value: prompts, budgets, scoring, sandbox.
    """
    value = {
        "format": FORMAT,
        "model": dict(model),
        "modes": list(plan.modes),
        "samples": {part.name: part.samples for part in plan.parts},
        "seed": plan.seed,
        "sampling": plan.sampling.model_dump(),
        **settings,
        "tasks": {part.name: {task.id: task_key(task) for task in part.tasks} for part in plan.parts},
    }
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse to go on with another evaluation's journal.

    Raises:
        ConfigError: naming the first key that differs, with both values.
    """
    for key in wanted:
        was, now = stored.get(key), wanted[key]
        if was == now:
            continue
        others = [k for k in wanted if k != key and stored.get(k) != wanted[k]]
        more = f" (and {', '.join(others)})" if others else ""
        raise ConfigError(
            f"--resume: {key} of {where}{_difference(was, now)}{more}; resume with what the run was "
            "started with, or start another with a new --output"
        )


def _difference(was: Any, now: Any, place: str = "") -> str:
    """The first difference within two values in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in (*now, *was):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    at = f", {place}" if place else ""
    return f"{at}: the run has {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
