"""What a run's turns are sampled with: the model that is trained, in this process, or servers of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from accelerate import PartialState
from transformers import PreTrainedModel

from sandbox_rl.commands.parts import build_policy
from sandbox_rl.commands.served import ServedPolicy, serve
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.policies.base import Policy
from sandbox_rl.policies.config import TransformersSettings
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.runs.model import RunModel
from sandbox_rl.training.callbacks import CountUpdates
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import compute_dtype, end_turns_with, load_trained

__all__ = ["RunPolicy", "run_policy"]


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """A policy with the model that it samples from.

    Args:
        model: loaded; None where the trainer loads it by itself.
        served: where the policy is sampled by servers.
        updates: a callback that the trainer must get.
    """

    policy: Policy
    model: PreTrainedModel | None
    served: ServedPolicy | None
    updates: CountUpdates


@contextmanager
def run_policy(
    recipe: Recipe,
    model: RunModel,
    *,
    loop: LoopThread,
    lease: ModelLease,
    state: PartialState,
    display: Display,
) -> Iterator[RunPolicy]:
    """Load the model, and start its servers where the recipe has some; entering the engine waits for them."""
    updates = CountUpdates()
    if isinstance(recipe.policy, TransformersSettings):
        loaded = _load(model)
        policy = build_policy(
            recipe.policy,
            loaded,
            model.tokenizer,
            model.chat,
            weight_version=lambda: updates.value,
            lease=lease,
            compute=compute_dtype(model.settings),
        )
        yield RunPolicy(policy, loaded, None, updates)
        return
    served = serve(
        recipe,
        model=model.settings.path,
        dtype=model.settings.dtype,
        tokenizer=model.tokenizer,
        chat=model.chat,
        longest_prompt=model.longest_prompt,
        context=model.context,
        loop=loop,
        state=state,
        display=display,
    )
    try:
        # While the server starts.
        yield RunPolicy(served.policy, _load(model) if recipe.mode == "sync" else None, served, updates)
    finally:
        served.stop()


def _load(model: RunModel) -> PreTrainedModel:
    loaded = load_trained(model.settings)
    end_turns_with(loaded, model.chat.ends)
    return loaded
