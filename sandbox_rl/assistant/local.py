"""The assistant's model in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from sandbox_rl.agents.tokens import TokenAgent
from sandbox_rl.assistant.settings import AssistantSettings
from sandbox_rl.builders import build_chat
from sandbox_rl.chat.format import ChatFormat
from sandbox_rl.model_builders import build_policy
from sandbox_rl.policies.base import Policy
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.training.models import load_model
from sandbox_rl.training.pretrained import generation_ends, load_tokenizer


class LocalAgent(TokenAgent):
    """On leaving, a generation that nobody waits for any more ends at its next token."""

    def __init__(self, policy: Policy, chat: ChatFormat, halt: Callable[[], None]) -> None:
        super().__init__(policy, chat)
        self._halt = halt

    async def __aexit__(self, *exc: object) -> None:
        self._halt()
        await super().__aexit__(*exc)


def load_agent(settings: AssistantSettings) -> LocalAgent:
    """The model of the settings, loaded.

    Raises:
        ModelError: not found, or not usable.
    """
    tokenizer = load_tokenizer(settings.model)
    chat = build_chat(settings, tokenizer, generation_ends(settings.model))
    model = load_model(settings.model)
    if torch.cuda.is_available():
        model = model.to("cuda")
    policy = build_policy(TransformersSettings(max_delay_s=0.0), model, tokenizer, chat)
    return LocalAgent(policy, chat, _halter(model))


def _halter(model: PreTrainedModel) -> Callable[[], None]:
    """A function that ends the model's generation at its next token: Python cannot stop a thread."""
    halted = threading.Event()

    def check(*_: Any) -> None:
        if halted.is_set():
            raise RuntimeError("generation was halted")

    model.register_forward_pre_hook(check)
    return halted.set
