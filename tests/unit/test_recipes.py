"""Every shipped recipe is valid; those that need no network pass the dry run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sandbox_rl.builders import grpo_arguments, training_arguments
from sandbox_rl.config.load import load_recipe
from sandbox_rl.tasks.prompts import load_prompt_set
from tests import prepared

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(p for p in RECIPES.rglob("*.yaml") if not p.parent.name.startswith("prompts"))
OFFLINE = ["math-cpu.yaml", "context-qa-cpu.yaml", "llm-in-sandbox/offline.yaml"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_valid_down_to_the_trainer_s_fields(path, tmp_path):
    recipe = load_recipe(path)
    args = training_arguments(recipe, tmp_path)
    if recipe.mode == "sync":
        assert args.generation_batch_size % args.num_generations == 0
    for source in recipe.data.sources:
        load_prompt_set(source.domain, [Path(d) for d in recipe.prompts])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_its_header_says_what_it_is(path):
    header = path.read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert path.stem.startswith("quickstart") or "estimated" in header


def test_the_paper_s_run_is_the_paper_s():
    recipe = load_recipe(RECIPES / "llm-in-sandbox" / "qwen3-4b.yaml")
    args = grpo_arguments(recipe, Path("unused"))
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-6, 0.01, 1.0)
    assert (args.epsilon, args.epsilon_high, args.beta, args.loss_type) == (0.2, 0.28, 0.0, "luspo")
    assert args.num_generations == args.generation_batch_size == 8  # a group on each of 8 processes
    assert (recipe.episode.max_turns, recipe.episode.max_tokens, recipe.episode.timeout_s) == (
        100,
        65_536,
        5400,
    )
    assert not recipe.curriculum.active


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_recipes_pass_the_dry_run_and_write_nothing(name, tmp_path):
    command = [sys.executable, "-m", "sandbox_rl.cli", "train", str(RECIPES / name), "--dry-run"]
    done = prepared.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ok  memory: estimated" in done.stdout
    assert "ok  reward" in done.stdout
    assert "as the model gets it:" in done.stdout
    assert re.search(r"its prompt: \d+ (bytes|tokens)", done.stdout)
    assert re.search(r"its gold answer '.+' → reward 1, by \w+", done.stdout)
    assert done.stdout.splitlines()[-1] == "ready: leave --dry-run out to train"
    assert list(tmp_path.iterdir()) == []
