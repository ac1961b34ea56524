"""Where managed servers go: `training/placement_plan.py` with this machine and this recipe."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import torch
from transformers import PretrainedConfig

from sandbox_rl.config.recipe import Recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.preflight.estimates import memory_of
from sandbox_rl.runs.launch import Launch, division_of, way_asked
from sandbox_rl.runs.plan import RunModel
from sandbox_rl.training.memory import kv_bytes_per_token, model_shape
from sandbox_rl.training.models import compute_dtype
from sandbox_rl.training.placement import FAKE_CARDS, Needs, Placement, find_cards
from sandbox_rl.training.placement_plan import Training, check_training, plan_placement, plan_serving
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

    divides = division.divides or way_asked(recipe.launch).name is not None
    smaller = _smaller(recipe, divides=divides, offloads=division.way.offloads)
    if managed and isinstance(policy, VLLMSettings):
        _check_heads(policy, model.config)

    def needs(ranks: int, *, divided: bool = division.divides) -> Needs:
        estimate = memory_of(
            recipe,
            args,
            model.config,
            prompt=model.longest_prompt,
            context=model.context,
            shards=ranks * division.processes // division.ranks if divided else 1,
            offloaded=division.way.offloads,
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
            check_training(cards[: division.ranks], needs(division.ranks).training, smaller)
        return None
    training = Training(
        cards,
        division.ranks,
        needs,
        recipe.mode,
        divided=partial(needs, divided=True),
        dividing="" if divides else "launch.config=fsdp2",
        smaller=smaller,
    )
    return _here(plan_placement(training, policy))


def _smaller(recipe: Recipe, *, divides: bool, offloads: bool) -> str:
    """What would make an update take less of a card, of what this recipe does not say already and may.

    Args:
        divides: whether several processes divide the model.
        offloads: whether the optimizer is in the host's memory.
    """
    served, whole = isinstance(recipe.policy, VLLMSettings), recipe.model.lora is None
    several_passes = recipe.mode == "async" or recipe.update.micro_batch_tokens is not None
    ways = ["model.lora={}"] * whole + ["shorter episodes"]
    ways += ["weights divided over more cards" + " (launch.config=fsdp2)" * (not divides)] * served
    if served and whole and not offloads and not several_passes:
        ways.append("an optimizer in the machine's memory (launch.config=zero3)")
    return " or ".join(part for part in (", ".join(ways[:-1]), ways[-1]) if part)


def _check_heads(policy: VLLMSettings, config: PretrainedConfig) -> None:
    """vLLM would refuse it at its start, minutes later."""
    heads, parallel = config.get_text_config().num_attention_heads, policy.tensor_parallel
    if heads % parallel:
        fit = [count for count in range(1, heads + 1) if heads % count == 0]
        raise ConfigError(
            f"policy.arguments: tensor-parallel-size {parallel} does not divide the model's {heads} "
            f"attention heads, expected one of {', '.join(map(str, fit))}"
        )


def serving_placement(policy: VLLMSettings, config: PretrainedConfig) -> Placement:
    """Where nothing is trained.

    Raises:
        ConfigError: it is not possible here, or not with this model.
    """
    _check_heads(policy, config)
    return _here(plan_serving(find_cards(), policy))


def _here(placement: Placement) -> Placement:
    """On cards that were made up nothing can run."""
    if FAKE_CARDS not in os.environ or torch.cuda.is_available() or placement.kind == "cpu":
        return placement
    other = "" if placement.transfer == "shm" else f", and by shm instead of {placement.transfer}"
    note = f"{FAKE_CARDS} is set: all of it on the CPU{other}"
    return replace(placement, transfer="shm", note=note)
