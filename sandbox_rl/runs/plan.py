"""What a start of a run is going to do, and with which model: checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sandbox_rl.builders import build_chat
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.preflight.context import check_prompts
from sandbox_rl.runs.resume import Earlier, prompt_digests, sizes_of
from sandbox_rl.runs.subjects import Subject
from sandbox_rl.tasks.load import TaskSet, load_tasks
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.curriculum import Curriculum
from sandbox_rl.training.models import check_quantization, context_length
from sandbox_rl.training.pretrained import generation_ends, load_config, load_tokenizer
from sandbox_rl.training.prometheus import check_prometheus
from sandbox_rl.training.sampler_check import check_rope
from sandbox_rl.training.tiny import CONTEXT, tiny_config, tiny_tokenizer
from sandbox_rl.training.tree_check import check_tree_config
from sandbox_rl.training.views import RunArgs


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A recipe with what it names.

    Args:
        recipe: with the model's type settled.
        base_dir: what relative paths of the recipe are relative to.
        prompts: domain → digest of the words around its problems.
        args: TRL's settings.
        held_out: what is measured before and after training; None where nothing is.
        suite: what is measured beside it.
        earlier: the run that this start goes on with.
    """

    recipe: Recipe
    base_dir: Path
    train_tasks: TaskSet
    held_out_tasks: TaskSet
    prompts: Mapping[str, str]
    args: RunArgs
    held_out: Subject | None
    suite: Subject | None
    earlier: Earlier | None

    @classmethod
    def of(cls, recipe: Recipe, *, base_dir: Path, earlier: Earlier | None = None) -> RunPlan:
        """Load the data and check what needs no model.

        Raises:
            UserError: data that is missing or does not fit the curriculum, a field that TRL refuses, or
                a suite that cannot be run; with `earlier`, tasks or sizes that are not those of its start.
        """
        tasks = load_tasks(recipe.data, split="train", base_dir=base_dir)
        held_out_tasks = load_tasks(recipe.data, split="held_out", base_dir=base_dir)
        if recipe.curriculum.active:  # refuses weights of domains that are not there, or left out
            Curriculum({task.id: task.domain for task in tasks}, recipe.curriculum, seed=recipe.seed)
        check_quantization(recipe.model)
        check_prometheus(recipe.metrics)
        held_out = Subject.held_out(recipe, base_dir, held_out_tasks)
        suite = Subject.scheduled(recipe)
        args = training_arguments(recipe, Path(recipe.output_dir))
        prompts = prompt_digests(
            (task.domain for task in chain(tasks, held_out_tasks)),
            [base_dir / folder for folder in recipe.prompts],
        )
        if earlier is not None:
            earlier.check(tasks, sizes_of(recipe, args), prompts)
        return cls(
            recipe,
            base_dir,
            tasks,
            held_out_tasks,
            prompts,
            args,
            held_out if held_out.tasks else None,
            suite,
            earlier,
        )

    @property
    def checkpoint(self) -> Path | None:
        """What training goes on from."""
        return None if self.earlier is None else self.earlier.checkpoint


@dataclass(frozen=True, slots=True)
class RunModel:
    """A model that fits the run's tasks.

    Args:
        settings: the recipe's model, or the warm-up's result.
        chat: its chat format.
        context: its longest sequence, in tokens.
        longest_prompt: in tokens.
        longest: tokens of the longest episode with its prompt.
    """

    settings: ModelSettings
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    context: int
    longest_prompt: int
    longest: int

    @classmethod
    def of(cls, plan: RunPlan, settings: ModelSettings) -> RunModel:
        """Look at a model's tokenizer and configuration; `tiny` is what its warm-up begins with.

        Raises:
            ModelError, ConfigError: it is not there, or cannot be trained on these tasks in this way.
        """
        recipe = plan.recipe
        tiny = settings.path == "tiny"
        # The tiny model's own tokenizer is trained during the warm-up and only ever shorter than bytes.
        tokenizer = tiny_tokenizer() if tiny else load_tokenizer(settings)
        chat = build_chat(recipe, tokenizer, () if tiny else generation_ends(settings))
        context = CONTEXT if tiny else context_length(load_config(settings))
        prompt = check_prompts(
            recipe, plan.base_dir, chat, plan.train_tasks, context=None if tiny else context
        )
        longest = min(context, prompt + recipe.episode.max_tokens)
        config = tiny_config(tokenizer) if tiny else load_config(settings)
        check_rope(config, longest=longest, path=settings.path)
        if recipe.mode == "async":
            check_tree_config(
                config,
                path=settings.path,
                cuda=torch.cuda.is_available(),
                trust_remote_code=settings.trust_remote_code,
            )
        return cls(settings, config, tokenizer, chat, context, prompt, longest)
