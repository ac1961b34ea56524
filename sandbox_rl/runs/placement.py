"""Where managed servers go: `training/placement_plan.py` with this machine and this recipe."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import torch

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.preflight.estimates import memory_of
from sandbox_rl.runs.launch import Launch, division_of
from sandbox_rl.runs.plan import RunModel
from sandbox_rl.training.memory import kv_bytes_per_token, model_shape
from sandbox_rl.training.models import compute_dtype
from sandbox_rl.training.placement import FAKE_CARDS, Needs, Placement, find_cards
from sandbox_rl.training.placement_plan import check_training, plan_placement, plan_serving
from sandbox_rl.training.views import SharedArgs


def training_placement(
    recipe: Recipe, args: SharedArgs, model: RunModel, *, launch: Launch | None = None
) -> Placement | None:
    """The same on every process; None where no server is ours.

    Args:
        args: TRL's settings of the recipe.
        launch: that would start this run, for a dry run; the processes that there are otherwise.

    Raises:
        ConfigError: it is not possible here.
    """
    policy, division, cards = recipe.policy, division_of(launch), find_cards()
    managed = isinstance(policy, VLLMSettings) and policy.engine == "managed"
    if managed and division.processes > division.ranks:
        raise ConfigError(
            "policy.engine: 'managed', but processes of several machines train, expected 'external': servers "
            "of the first machine are out of the others' reach; start some and name them in policy.base_urls"
        )

    def needs(ranks: int, *, divided: bool = division.way is not None) -> Needs:
        estimate = memory_of(
            recipe,
            args,
            model.config,
            prompt=model.longest_prompt,
            context=model.context,
            shards=ranks * division.processes // division.ranks if divided else 1,
            offloaded=division.offloads,
        )
        shape, item = model_shape(model.config), compute_dtype(model.settings).itemsize
        return Needs(
            estimate.training,
            estimate.held,
            weights=shape.parameters * item,
            longest=kv_bytes_per_token(shape, item) * model.longest,
        )

    if not isinstance(policy, VLLMSettings) or policy.engine == "external":
        if cards:
            check_training(cards[: division.ranks], needs(division.ranks).training)
        return None
    other = partial(needs, divided=True) if division.way is None else None
    return _here(plan_placement(cards, division.ranks, policy, needs, mode=recipe.mode, divided=other))


def serving_placement(policy: VLLMSettings) -> Placement:
    """Where nothing is trained.

    Raises:
        ConfigError: it is not possible here.
    """
    return _here(plan_serving(find_cards(), policy))


def _here(placement: Placement) -> Placement:
    """On cards that were made up nothing can run."""
    if FAKE_CARDS not in os.environ or torch.cuda.is_available() or placement.kind == "cpu":
        return placement
    note = f"{FAKE_CARDS} is set: all of it on the CPU, and by shm instead of {placement.transfer}"
    return replace(placement, transfer="shm", note=note)
