"""What a run's turns are sampled with: the model that is trained, in this process, or servers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sandbox_rl.cassette import recordings
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.run import RunSettings
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
        model: loaded; None where nothing but servers samples from it, or the trainer loads it by itself.
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
    """The policy of a training run, with the model that it trains, which is loaded while servers start.

    Args:
        placement: of managed servers.
    """
    load, compute = partial(loaded_model, model), compute_dtype(model.settings)
    with policy_of(
        recipe, model, placement, load=load, lease=lease, compute=compute, loop=loop, display=display
    ) as found:
        by_trainer = found.served is not None and recipe.mode == "async"
        yield found if found.model is not None or by_trainer else replace(found, model=load())


@contextmanager
def policy_of(
    run: RunSettings,
    model: RunModel,
    placement: Placement | None,
    *,
    load: Callable[[], PreTrainedModel],
    lease: ModelLease | None = None,
    compute: torch.dtype | None = None,
    loop: LoopThread,
    display: Display,
) -> Iterator[RunPolicy]:
    """What the run's policy settings choose; entering the policy waits for its servers.

    Args:
        placement: of managed servers.
        load: gives the model to sample from in this process.
        lease, compute: of a model that is trained too, see `build_policy`.
    """
    if isinstance(run.policy, TransformersSettings):
        loaded, weights = load(), UnsentWeights()
        policy = build_policy(
            run.policy,
            loaded,
            model.tokenizer,
            model.chat,
            version=weights.version,
            lease=lease,
            compute=compute,
        )
        yield RunPolicy(policy, loaded, None, weights)
        return
    if isinstance(run.policy, RecordedPolicySettings):
        played = RecordedPolicy(recordings(run.policy.journal), max_context=model.context)
        yield RunPolicy(played, None, None, UnsentWeights())
        return
    if placement is not None:
        display.say(f"policy: {placement}")
    served = serve(
        run.policy,
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
        log=starting_log(Path(run.output_dir), run.name),
        say=display.say,
    )
    try:
        yield RunPolicy(served.policy, None, served, served.weights)
    finally:
        served.stop()


def loaded_model(model: RunModel) -> PreTrainedModel:
    """The model that is trained, which ends its turns as its chat format does."""
    loaded = load_trained(model.settings)
    end_turns_with(loaded, model.chat.ends)
    return loaded
