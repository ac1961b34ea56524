"""Which checkpoint training starts from: the recipe's model, or the result of its warm-up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState

from sandbox_rl.config.recipe import Recipe, resolved
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, InfraFault
from sandbox_rl.outputs import write_atomically
from sandbox_rl.policies.vllm.launch import without_launcher
from sandbox_rl.training.agreement import of_first, together
from sandbox_rl.training.config import ModelSettings

if TYPE_CHECKING:
    from sandbox_rl.runs.warmup import WarmupResult


def starting_point(recipe: Recipe, *, base_dir: Path, state: PartialState, display: Display) -> ModelSettings:
    """The model to load; makes the warm-up checkpoint if the recipe asks for one.

    Raises:
        ConfigError: `tiny` without a warm-up, or what the warm-up finds wrong.
        SandboxRLError: on every process, when one of them has no starting point.
    """
    if not needs_warmup(recipe):
        return recipe.model
    if state.num_processes == 1:
        result = _warm(recipe, base_dir, display)
    else:
        of_first(lambda: _warm_alone(recipe, base_dir))
        with together():
            result = _warm(recipe, base_dir, display)
    return recipe.model.model_copy(update={"path": str(result.path)})


def needs_warmup(recipe: Recipe) -> bool:
    """Whether a warm-up comes first.

    Raises:
        ConfigError: `tiny` without one.
    """
    if recipe.warmup is None and recipe.model.path == "tiny":
        raise ConfigError(
            "model.path: 'tiny' has random weights and cannot call a tool, expected a 'warmup:' block "
            "with it; add one, or set model.path to a trained model"
        )
    return recipe.warmup is not None


def _warm(recipe: Recipe, base_dir: Path, display: Display) -> WarmupResult:
    from sandbox_rl.runs.warmup import warmup  # a second of imports that a dry run does without

    result = warmup(recipe, base_dir=base_dir, display=display)
    how = "found" if result.cached else "made"
    display.say(
        f"Warm-up checkpoint {how}: {result.successful} of {result.episodes} expert episodes, "
        f"loss {result.loss:.3f}, {result.path}"
    )
    return result


def _warm_alone(recipe: Recipe, base_dir: Path) -> None:
    """Run the warm-up in a process outside the process group, whose collectives would wait for all ranks."""
    from sandbox_rl.runs.warmup import cached

    if cached(recipe, base_dir=base_dir):
        return
    folder = Path(recipe.output_dir) / "warmup"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".recipe.{os.getpid()}.yaml"
    write_atomically(path, resolved(recipe))
    command = [sys.executable, "-m", "sandbox_rl.runs.warmup", str(path), str(base_dir)]
    try:
        done = subprocess.run(command, env=without_launcher(), capture_output=True, text=True, check=False)
    finally:
        path.unlink(missing_ok=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        if done.returncode == 2:
            raise ConfigError(last)
        raise InfraFault(f"warmup: its process ended with exit code {done.returncode}: {last}")
