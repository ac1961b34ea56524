"""From a recipe to objects: the parts that training, evaluation and replays have in common.

None needs PyTorch; what does is in `model_builders`. A process that only rolls out loads neither it nor TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sandbox_rl.agents.base import Agent
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.chat.template import ChatTokenizer
from sandbox_rl.config.run import AgentSettings, RunSettings
from sandbox_rl.fault_injection import ChaosSettings, FaultyAgent, FaultyBackend, FaultyScoring, Injector
from sandbox_rl.policies.base import Sampling
from sandbox_rl.rewards.base import Scores
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PROGRAM, FirstPlace, Place, PlainPlace
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout.disk import DiskSpace
from sandbox_rl.rollout.engine import RolloutEngine
from sandbox_rl.sandboxes.base import SandboxBackend
from sandbox_rl.sandboxes.config import BackendSettings, DockerSettings
from sandbox_rl.sandboxes.program import ProgramSandboxes
from sandbox_rl.tasks.prompts import PromptSet, load_prompt_set, render, render_plain
from sandbox_rl.tools.toolbox import Toolbox, make_toolbox
from sandbox_rl.types import Message, Task

WORKER_MB = 1024
"""What a scoring worker may hold besides the answer's own memory, MiB."""


def build_backend(recipe: RunSettings) -> SandboxBackend:
    """The sandbox backend of a recipe, behind a pool that keeps some ready and survives its faults."""
    return recipe.sandbox.hiding(recipe.answer_packages).pooled(recipe.pool, run=recipe.name)


def build_toolbox(recipe: AgentSettings) -> Toolbox:
    """The tools of a recipe, or of an assistant."""
    return make_toolbox(recipe.tools, exec_timeout=recipe.episode.exec_timeout_s)


def build_scoring(recipe: RunSettings, base_dir: Path | None = None) -> ScoringPool:
    """The scorers of a recipe, in sandboxes of their own.

    Args:
        base_dir: where the recipe lies; a module beside it can be named as a scorer.
    """
    place = scoring_place(recipe.reward, recipe.sandbox)
    return ScoringPool(place, recipe.reward, expected=recipe.scorers, beside=base_dir)


def scoring_place(settings: RewardSettings, sandbox: BackendSettings | None = None) -> Place:
    """Where the scoring workers of these settings run: sandboxes by bubblewrap, else containers.

    Args:
        sandbox: where commands run; a Docker engine and image there are used for scoring as well.
    """
    if settings.isolation == "none":
        return PlainPlace()
    memory_mb = settings.memory_mb + WORKER_MB
    bubblewrap = ProgramSandboxes(PROGRAM, memory_mb=memory_mb)
    docker = sandbox if isinstance(sandbox, DockerSettings) else None
    if settings.docker_image:
        given = docker or DockerSettings(type="docker")
        docker = given.model_copy(update={"image": settings.docker_image, "digest": ""})
    if docker is None:
        return bubblewrap
    from sandbox_rl.sandboxes.docker.program import DockerPrograms

    containers = DockerPrograms(PROGRAM, docker, memory_mb=memory_mb)
    return FirstPlace([("sandboxes", bubblewrap), (f"containers of {docker.image}", containers)])


def build_render(
    recipe: RunSettings, base_dir: Path, *, plain: bool = False
) -> Callable[[Task], tuple[Message, ...]]:
    """The function from a task to the messages of its prompt, by the task's domain.

    Args:
        plain: the messages that ask it without a sandbox.
    """
    form = render_plain if plain else render
    directories = tuple(base_dir / directory for directory in recipe.prompts)
    sets: dict[str, PromptSet] = {}

    def rendered(task: Task) -> tuple[Message, ...]:
        if task.domain not in sets:
            sets[task.domain] = load_prompt_set(task.domain, directories)
        return form(task, sets[task.domain])

    return rendered


def build_chat(
    recipe: AgentSettings, tokenizer: ChatTokenizer, model_ends: Iterable[int] = (), *, tools: bool = True
) -> ChatFormat:
    """The chat format of a recipe or an assistant, for the model of this tokenizer.

    Args:
        model_ends: the ids at which the model's generation config ends a text (`generation_ends`).
        tools: whether it is told about the recipe's tools.

    Raises:
        ModelError: its chat template cannot be used.
    """
    return ChatFormat.from_tokenizer(
        tokenizer,
        build_toolbox(recipe).schemas if tools else (),
        call_format=recipe.chat.call_format,
        template_options=dict(recipe.chat.template_options),
        model_ends=model_ends,
    )


def build_engine(
    recipe: RunSettings,
    *,
    base_dir: Path,
    agent: Agent,
    sampling: Sampling,
    backend: SandboxBackend | None,
    chaos: ChaosSettings | None = None,
) -> RolloutEngine:
    """The rollout engine around an agent; enter it to start its parts.

    Args:
        backend: None for episodes of one reply, without a sandbox.
        chaos: faults that are injected into the engine's parts.
    """
    scoring: Scores = build_scoring(recipe, base_dir)
    if chaos is not None and chaos.share:
        injector = Injector(chaos)
        agent, scoring = FaultyAgent(agent, injector), FaultyScoring(scoring, injector)
        backend = None if backend is None else FaultyBackend(backend, injector)
    return RolloutEngine(
        agent=agent,
        backend=backend,
        scoring=scoring,
        toolbox=build_toolbox(recipe),
        render=build_render(recipe, base_dir, plain=backend is None),
        episode=recipe.episode,
        sampling=sampling,
        settings=recipe.rollout,
        disk=DiskSpace(Path(recipe.output_dir)),
    )
