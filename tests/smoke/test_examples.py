"""The examples that train do train."""

from __future__ import annotations

import importlib

import pytest

import sandbox_rl
from sandbox_rl.registry import look_beside

from ..unit.test_examples import EXAMPLES

pytestmark = pytest.mark.filterwarnings("default")  # of torch and transformers, as in any program


@pytest.fixture(scope="module", autouse=True)
def beside():
    look_beside(EXAMPLES)


@pytest.mark.slow
async def test_one_file_learns_that_reading_pays():
    """It starts at two ways of which one pays, half of the time each."""
    means = await importlib.import_module("one_file_grpo").run(10)
    assert sum(means[-2:]) / 2 > sum(means[:2]) / 2 + 0.2, means


@pytest.mark.slow
def test_training_from_python_returns_what_it_made(tmp_path):
    recipe = importlib.import_module("train_in_python").recipe(1, output_dir=str(tmp_path))
    warmup = recipe.warmup.model_copy(update={"episodes": 32, "sft": recipe.warmup.sft | {"max_steps": 8}})
    asked = recipe.evaluation.model_copy(update={"tasks": 4})
    small = recipe.model_copy(update={"warmup": warmup, "evaluation": asked})
    result = sandbox_rl.train(small, base_dir=EXAMPLES)
    assert (result.steps, result.interrupted) == (1, False)
    assert result.export is not None
    assert (result.export / "model.safetensors").is_file()
    assert result.before is not None
    assert result.before.tasks == 4
    kept = sandbox_rl.load_recipe(result.run / "recipe.yaml")
    assert type(kept.data.sources[0]).__name__ == "Secrets"


def test_everything_of_one_s_own_passes_the_dry_run(tmp_path):
    """Backend, tool, dialect, source, scorer and expert at once; a real sandbox, real scorers."""
    from sandbox_rl.display import Silent
    from sandbox_rl.runs.dry_run import dry_run

    recipe = sandbox_rl.load_recipe(EXAMPLES / "own.yaml", [f"output_dir={tmp_path}"])
    dry_run(recipe, base_dir=EXAMPLES, display=Silent())
