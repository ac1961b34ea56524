"""The same as the commands, from Python: values in, values out; nothing is printed, nothing exits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sandbox_rl.config.load import anchored, load_recipe
from sandbox_rl.config.recipe import Recipe
from sandbox_rl.config.shipped import find_recipe
from sandbox_rl.display import Display, Silent
from sandbox_rl.registry import look_beside
from sandbox_rl.sandboxes.base import Sandbox
from sandbox_rl.sandboxes.config import BackendSettings, EmbeddedSettings

if TYPE_CHECKING:  # torch takes seconds, so it is loaded where it is used
    from sandbox_rl.runs.evaluate import EvaluationOutcome
    from sandbox_rl.runs.train import TrainResult


def train(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    base_dir: Path | None = None,
    resume: str | None = None,
    display: Display | None = None,
) -> TrainResult:
    """Train, as `sandbox-rl train` does.

    Args:
        recipe: a value, the path of a recipe file, or the name of one that comes along: `quickstart`.
        overrides: `KEY=VALUE`, for a file.
        base_dir: what relative paths of a value are relative to, and where the modules lie that it names; the
            working directory by default. A file has its own folder.
        resume: as `--resume`: a run, or "" for the newest.
        display: is told of progress; None tells nobody.

    Returns:
        The run's directory, the exported model, and held-out accuracy before and after.

    Raises:
        UserError: something in the recipe, the data, the model or the machine.
        InfraFault: too many episodes failed on our side.
        NothingTrained: no token of any step had a gradient.
    """
    from sandbox_rl.runs.train import train as run
    from sandbox_rl.training.stopping import signals_as_before

    base_dir = Path.cwd() if base_dir is None else base_dir
    if not isinstance(recipe, Recipe):
        path = find_recipe(recipe)
        recipe, base_dir = load_recipe(path, overrides), path.resolve().parent
    look_beside(base_dir)
    with signals_as_before():
        return run(anchored(recipe, base_dir), base_dir=base_dir, resume=resume, display=display)


def evaluate(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key_env: str | None = None,
    mode: Literal["sandbox", "plain", "both"] = "sandbox",
    samples: int | None = None,
    output: Path | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> EvaluationOutcome:
    """Measure a model on a recipe's held-out tasks or on a suite, as `sandbox-rl eval` does.

    Args:
        target: path of a recipe or a suite, or the name of a shipped suite.
        model: directory, Hub id, or name at the endpoint; None takes the recipe's own.
        base_url, api_key_env: an OpenAI-compatible endpoint, and the variable with its key.
        samples: episodes per task, instead of those of the recipe or of every part.
        output: where results go; must not exist, unless `resume`.

    Raises:
        UserError: something in the recipe, the data, the model or the machine.
        InfraFault: not one episode could be judged because of failures on our side.
    """
    from sandbox_rl.runs.evaluate import EvaluateOptions
    from sandbox_rl.runs.evaluate import evaluate as run

    options = EvaluateOptions(
        str(target), overrides, model, base_url, api_key_env, mode, samples, output, resume
    )
    return run(options, display=display or Silent())


@asynccontextmanager
async def open_sandbox(
    settings: BackendSettings | None = None, files: Mapping[str, bytes] | None = None
) -> AsyncIterator[Sandbox]:
    """One sandbox with these files under `/testbed/documents`; it is gone when the context is left.

    Args:
        settings: of its backend; bubblewrap on this machine by default.

    Raises:
        SetupError: this machine can make none.
        SandboxFault: it could not be made now.
    """
    async with (settings or EmbeddedSettings()).backend() as backend, backend.sandbox(files) as sandbox:
        yield sandbox
