"""Held-out evaluation of a model without training."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState

from sandbox_rl.commands.display import Display
from sandbox_rl.commands.held_out import HeldOut
from sandbox_rl.commands.parts import build_chat, build_engine, build_policy
from sandbox_rl.commands.run_dir import RunDirectory
from sandbox_rl.commands.starting_point import starting_point
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.episode import SamplingSettings
from sandbox_rl.errors import ConfigError
from sandbox_rl.evaluation import Evaluation
from sandbox_rl.journal import Journal
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.tasks.load import load_tasks
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import load_model, load_tokenizer

__all__ = ["evaluate"]


def evaluate(recipe: Recipe, *, base_dir: Path, model: str | None, display: Display) -> Evaluation:
    """Evaluate `model`, or what the recipe starts from, on the recipe's held-out tasks.

    Every episode goes to the journal of a new run directory, `<name>-eval`.

    Raises:
        ConfigError: the evaluation is switched off.
    """
    if recipe.evaluation.tasks == 0:
        raise ConfigError("evaluation.tasks: 0, expected at least 1; set evaluation.tasks=200")
    state = PartialState()
    held_out_tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
    settings = (
        recipe.model.model_copy(update={"path": model})
        if model is not None
        else starting_point(recipe, base_dir=base_dir, state=state, display=display)
    )
    tokenizer, loaded = load_tokenizer(settings), load_model(settings)
    chat = build_chat(recipe, tokenizer)
    sampler = recipe.policy if isinstance(recipe.policy, TransformersSettings) else TransformersSettings()
    policy = build_policy(sampler, loaded, tokenizer, chat)
    engine = build_engine(recipe, base_dir=base_dir, policy=policy, chat=chat, sampling=SamplingSettings())
    run = RunDirectory.new(Path(recipe.output_dir), f"{recipe.name}-eval")
    with LoopThread() as loop, loop.entered(engine), Journal(run.episodes) as journal:
        evaluator = HeldOut(
            engine,
            loop,
            journal,
            held_out_tasks,
            recipe.evaluation,
            seed=recipe.seed,
            state=state,
            display=display,
        )
        evaluation = evaluator.evaluate(settings.path, 0)
    if evaluation is None:
        raise ConfigError("data: no held-out task; raise data.held_out or a source's size")
    return evaluation
