"""The model that a run starts from, as far as it is known without its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sandbox_rl.builders import build_chat
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.preflight.context import check_prompts
from sandbox_rl.runs.plan import RunPlan
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.models import configured_context, generation_ends, load_config, load_tokenizer
from sandbox_rl.training.sampler_check import check_rope
from sandbox_rl.training.tiny import CONTEXT, tiny_config, tiny_tokenizer
from sandbox_rl.training.tree_check import check_tree_config

__all__ = ["RunModel"]


@dataclass(frozen=True, slots=True)
class RunModel:
    """A model that fits the run's tasks.

    Args:
        settings: the recipe's model, or the warm-up's result.
        chat: how it is talked to.
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
        context = CONTEXT if tiny else configured_context(settings)
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
