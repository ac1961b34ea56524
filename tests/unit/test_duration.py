"""The duration estimate against numbers by hand, and the recipes' headers against both estimates."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox_rl.config.load import load_recipe
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.training.duration import (
    DEVICES,
    Device,
    active_parameters,
    device_named,
    estimate_duration,
    sampled_together,
)
from sandbox_rl.training.memory import ModelShape, estimate_memory, kv_bytes_per_token, model_shape
from sandbox_rl.training.placement import Needs, fake_cards
from sandbox_rl.training.placement_plan import Training, plan_placement
from tests.unit.shapes import QWEN3_4B, QWEN3_30B

CARDS = {(8, "H100"): "8x H100 80GB", (1, "H100"): "1x H100 80GB", (1, "4090"): "1x RTX 4090 24GB"}
SHAPE = ModelShape(
    parameters=20_000_000,
    linear_weights=1,
    linear_widths=0,
    layers=2,
    hidden=100,
    query_width=50,
    kv_width=10,
    mlp_width=200,
    vocabulary=1000,
)
ACTIVE = 2 * (100 * (100 + 20) + 3 * 100 * 200) + 1000 * 100
DEVICE = Device("D", rate=1e12, bandwidth=1e10)
FIELDS = {"updates": 10, "episodes": 8, "rows": 4, "prompt_tokens": 100, "max_tokens": 2000}


def estimate(shape=SHAPE, device=DEVICE, **changes):
    return estimate_duration(shape, device, **(FIELDS | {"server": False} | changes))


def test_by_hand():
    """1,000 tokens on average and 2,000 at most, 0.56 of them sampled, in two rounds of four rows."""
    found = estimate()
    kv = 2 * 2 * 10 * 2

    def step(rows):
        return 2 * 0.7e-3 + (40_000_000 + rows * 600 * kv) / (1e10 * 0.7)

    assert found.sampling == pytest.approx(2 * 560 * step(4) + 560 * step(1))
    assert found.training == pytest.approx(8 * 6 * 1100 * (ACTIVE + 2 * 50 * 1100) / (1e12 * 0.2))
    assert found.hours == pytest.approx(10 * (found.sampling + found.training) / 3600)
    assert str(found).startswith(f"estimated {found.hours:.1f} h on D for 10 updates (each: sampling ")


def test_a_server_pays_for_rows_instead_of_layers():
    read = (40_000_000 + 4 * 600 * 80) / 7e9
    alone = (40_000_000 + 600 * 80) / 7e9
    expected = 2 * 560 * (2.7e-3 + 4 * 22e-6 + read) + 560 * (2.7e-3 + 22e-6 + alone)
    assert estimate(server=True).sampling == pytest.approx(expected)


def test_what_changes_it():
    base = estimate()
    assert estimate(lora=True).training == pytest.approx(base.training * 4 / 6)
    assert estimate(shards=2).sampling < base.sampling
    assert estimate(rows=8).sampling < base.sampling
    assert estimate(max_tokens=10**6).training == estimate(max_tokens=10**7).training  # the paper's average
    assert estimate(replace(SHAPE, parameters=9_999_999)) is None


def test_devices_are_found_by_torch_s_names():
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA GeForce RTX 4090": "4090", "whatever": "H100"}
    assert {name: device_named(name).name for name in names} == names


@pytest.mark.parametrize(("policy", "rows"), [("transformers", 4), ("vllm", 16)])
def test_rows_that_are_sampled_together(policy, rows):
    assert sampled_together(policy, max_batch=4, concurrency=64, episodes=16) == rows
    assert sampled_together(policy, max_batch=4, concurrency=2, episodes=16) == 2


HEADERS = {
    "qwen3-4b": (QWEN3_4B, 8, 1),
    "baseline-math-only": (QWEN3_4B, 8, 1),
    "baseline-context-in-prompt": (QWEN3_4B, 8, 1),
    "lora-24gb": (QWEN3_4B, 1, 1),
    "lora-80gb": (QWEN3_4B, 1, 1),
    "qwen3-30b-a3b-multi-node": (QWEN3_30B, 16, 8),
}
"""Shape of the model, devices that an update is sharded over, and devices of a server's copy."""

LONGEST_PROMPT, USUAL_PROMPT = 16_384, 1_000
FOLDER = Path(__file__).parents[2] / "recipes" / "llm-in-sandbox"


def test_the_counted_shapes_are_the_models():
    assert model_shape(QWEN3_4B).parameters == pytest.approx(4.02e9, rel=0.001)
    assert model_shape(QWEN3_30B).parameters == pytest.approx(30.5e9, rel=0.002)
    assert active_parameters(model_shape(QWEN3_4B)) == pytest.approx(4.02e9, rel=0.001)
    assert active_parameters(model_shape(QWEN3_30B)) == pytest.approx(3.03e9, rel=0.01)


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_the_header_of_a_recipe_says_what_the_estimates_say(name, tmp_path):
    config, shards, tensor_parallel = HEADERS[name]
    path = FOLDER / f"{name}.yaml"
    recipe = load_recipe(path)
    args = training_arguments(recipe, tmp_path)
    shape = model_shape(config)
    episodes = args.per_device_train_batch_size * args.gradient_accumulation_steps
    header = re.sub(r"\s*\n#\s*", " ", path.read_text().partition("\nname:")[0])

    device = DEVICES[re.search(r"estimated [\d.]+ h on (\S+)", header)[1]]
    found = estimate_duration(
        shape,
        device,
        updates=args.max_steps,
        episodes=episodes,
        rows=sampled_together("vllm", 0, recipe.rollout.concurrency, episodes),
        prompt_tokens=USUAL_PROMPT,
        max_tokens=recipe.episode.max_tokens,
        server=True,
        lora=recipe.model.lora is not None,
        shards=tensor_parallel,
    )
    hours = re.match(r"estimated [\d.]+ h", str(found))[0]
    assert f"{hours} on {device.name} with" in header

    memory = estimate_memory(
        shape,
        args,
        recipe.model,
        prompt_tokens=LONGEST_PROMPT,
        completion_tokens=recipe.episode.max_tokens,
        sampled_rows=0,
        shards=shards,
    )
    assert str(memory).partition(" per device")[0] in header
    assert isinstance(recipe.policy, VLLMSettings)
    if recipe.policy.engine == "managed":
        needs = Needs(
            memory.training,
            memory.held,
            weights=2 * shape.parameters,
            longest=kv_bytes_per_token(shape, 2) * (LONGEST_PROMPT + recipe.episode.max_tokens),
        )
        cards = fake_cards(CARDS[shards, device.name])
        placed = plan_placement(Training(cards, shards, lambda _: needs, recipe.mode), recipe.policy)
        assert placed.kind == ("shared" if shards > 1 else "one")
        assert placed.sleep == ("sleeps during updates" in header)
