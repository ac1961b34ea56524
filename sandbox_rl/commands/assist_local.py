"""The assistant's policy in this process: a transformers model, its chat format, and a way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.commands.parts import build_policy
from sandbox_rl.config.assistant import AssistantSettings
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.transformers import TransformersPolicy
from sandbox_rl.tools.toolbox import default_toolbox
from sandbox_rl.training.models import generation_ends, load_model, load_tokenizer

__all__ = ["assistant_chat", "load_engine"]


def load_engine(settings: AssistantSettings) -> tuple[TransformersPolicy, ChatFormat, Callable[[], None]]:
    """The policy, its chat format, and a function that halts its generation.

    Raises:
        ModelError: not found, or not usable.
    """
    tokenizer = load_tokenizer(settings.model)
    chat = assistant_chat(settings, tokenizer, generation_ends(settings.model))
    model = load_model(settings.model)
    if torch.cuda.is_available():
        model = model.to("cuda")
    policy = build_policy(TransformersSettings(max_delay_s=0.0), model, tokenizer, chat)
    return policy, chat, _halter(model)


def assistant_chat(settings: AssistantSettings, tokenizer: Any, model_ends: Sequence[int] = ()) -> ChatFormat:
    """The chat format with the assistant's tools, as in training and evaluation.

    Raises:
        ModelError: the tokenizer's chat template cannot be used.
    """
    return ChatFormat.from_tokenizer(
        tokenizer,
        default_toolbox().schemas,
        call_format=settings.chat.call_format,
        template_options=dict(settings.chat.template_options),
        model_ends=model_ends,
    )


def _halter(model: PreTrainedModel) -> Callable[[], None]:
    """A function that ends the model's generation at its next token: Python cannot stop a thread."""
    halted = threading.Event()

    def check(*_: Any) -> None:
        if halted.is_set():
            raise RuntimeError("generation was halted")

    model.register_forward_pre_hook(check)
    return halted.set
