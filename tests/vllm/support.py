"""Asking a served policy, and the same of the model in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from sandbox_rl.policies.base import TurnSampling
from sandbox_rl.types import Action
from tests.processes import command, tree_of

PROMPT = tuple(range(10, 50))


def fronts(top: int) -> list[int]:
    """The processes below one that answer requests to vLLM servers, in the order of their start."""
    return [
        pid
        for pid in sorted(tree_of(top))
        if command(pid)[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    ]


def front(served) -> list[int]:
    """That of this server of ours: one, or none while it is down."""
    return [pid for pid in fronts(os.getpid()) if str(served.checkpoint) in command(pid)]


def ask(served, prompt=PROMPT, *, seed=5, max_tokens=24, timeout=200.0) -> Action:
    async def act() -> Action:
        async with served.policy.session("test") as session:
            return await session.act(prompt, TurnSampling(max_tokens=max_tokens, seed=seed), timeout=timeout)

    return served.loop.run(act())


def logprobs(model, prompt: Sequence[int], sampled: Sequence[int]) -> torch.Tensor:
    """Of each sampled token under `model`, computed as a trainer does: all at once."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *sampled]], device=model.device)
        logits = model(ids).logits[0].float().log_softmax(-1).cpu()
    rows = logits[len(prompt) - 1 : -1]
    return rows[torch.arange(len(sampled)), torch.tensor(sampled)]


def gap(model, prompt: Sequence[int], action: Action) -> float:
    """Mean absolute difference between the sampler's log-probs and the model's, in nats."""
    return (logprobs(model, prompt, action.token_ids) - torch.tensor(action.logprobs)).abs().mean().item()


class Broken:
    """A model whose norms are too short for any server."""

    def __init__(self, model) -> None:
        self._model = model

    def named_parameters(self):
        return ((n, t[:-1] if "norm" in n else t) for n, t in self._model.named_parameters())


def disturb(model, seed: int) -> None:
    """As an update would, only larger."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise * 0.1 * parameter.std().nan_to_num(0.05).clamp(min=0.02))
