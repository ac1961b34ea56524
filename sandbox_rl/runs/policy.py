"""What a run's turns are sampled with: the model that is trained, in this process, or servers of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from sandbox_rl.cassette import recordings
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.display import Display
from sandbox_rl.model_builders import build_policy
from sandbox_rl.policies.base import Policy
from sandbox_rl.policies.config import RecordedPolicySettings, TransformersSettings
from sandbox_rl.policies.lease import ModelLease
from sandbox_rl.policies.recorded import RecordedPolicy
from sandbox_rl.runs.plan import RunModel
from sandbox_rl.training.loop import LoopThread
from sandbox_rl.training.models import compute_dtype, end_turns_with, load_trained
from sandbox_rl.training.placement import Placement
from sandbox_rl.training.publication.base import UnsentWeights, Weights
from sandbox_rl.training.publication.served import ServedModel, ServedPolicy, serve, starting_log


@dataclass(frozen=True, slots=True)
class RunPolicy:
    """A policy with the model that it samples from.

    Args:
        model: loaded; None where the trainer loads it by itself.
        served: where the policy is sampled by servers.
        weights: that the policy samples with, for the trainer to publish.
    """

    policy: Policy
    model: PreTrainedModel | None
    served: ServedPolicy | None
    weights: Weights


@contextmanager
def run_policy(
    recipe: Recipe,
    model: RunModel,
    placement: Placement | None,
    *,
    loop: LoopThread,
    lease: ModelLease,
    display: Display,
) -> Iterator[RunPolicy]:
    """Load the model, and start its servers where the recipe has some; entering the engine waits for them.

    Args:
        placement: of managed servers.
    """
    if isinstance(recipe.policy, TransformersSettings):
        loaded, weights = loaded_model(model), UnsentWeights()
        policy = build_policy(
            recipe.policy,
            loaded,
            model.tokenizer,
            model.chat,
            version=weights.version,
            lease=lease,
            compute=compute_dtype(model.settings),
        )
        yield RunPolicy(policy, loaded, None, weights)
        return
    if isinstance(recipe.policy, RecordedPolicySettings):
        played = RecordedPolicy(recordings(recipe.policy.journal), max_context=model.context)
        yield RunPolicy(played, loaded_model(model), None, UnsentWeights())
        return
    if placement is not None:
        display.say(f"policy: {placement}")
    served = serve(
        recipe.policy,
        ServedModel(
            model.settings.path,
            model.settings.dtype,
            model.tokenizer,
            end_ids=model.chat.ends.ids,
            longest_prompt=model.longest_prompt,
            longest=model.longest,
        ),
        placement,
        loop=loop,
        log=starting_log(Path(recipe.output_dir), recipe.name),
        say=display.say,
    )
    try:
        loaded_too = loaded_model(model) if recipe.mode == "sync" else None  # while the server starts
        yield RunPolicy(served.policy, loaded_too, served, served.weights)
    finally:
        served.stop()


def loaded_model(model: RunModel) -> PreTrainedModel:
    """The model that is trained, which ends its turns as its chat format does."""
    loaded = load_trained(model.settings)
    end_turns_with(loaded, model.chat.ends)
    return loaded
