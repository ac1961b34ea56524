"""A run's checkpoint as a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sandbox_rl.builders import build_chat
from sandbox_rl.errors import ConfigError, ModelError
from sandbox_rl.outputs import check_new
from sandbox_rl.runs.history import card_lines, known_results, recorded_run
from sandbox_rl.training.checkpoints import complete_of, last_complete
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.export import export_model, whole_weights
from sandbox_rl.training.models import compute_dtype, load_adapted, load_model, with_compute_dtype
from sandbox_rl.training.pretrained import generation_ends, load_tokenizer


def export(
    run_dir: Path,
    output: Path,
    *,
    step: int | None = None,
    merge_lora: bool = True,
    push_to_hub: str | None = None,
) -> Path:
    """Write the run's newest complete checkpoint, or that of `step`, to `output`.

    Raises:
        ConfigError: no such run or checkpoint, one of a newer version, or `output` exists.
        ModelError: the Hub refuses the upload.
    """
    check_new(output, "OUTPUT")
    if push_to_hub is not None:
        check_repository(push_to_hub)
    run, recipe = recorded_run(run_dir)
    checkpoint = _checkpoint(run.checkpoints, step)
    trained = with_compute_dtype(recipe.model)  # the checkpoint itself holds float32 masters
    settings = ModelSettings(path=str(checkpoint), dtype=trained.dtype)
    adapter = (checkpoint / "adapter_config.json").is_file()
    model: Any = load_adapted(checkpoint, trained) if adapter else load_model(settings)
    dtype = compute_dtype(trained)
    results = known_results(run)
    tokenizer = load_tokenizer(settings)
    path = export_model(
        model,
        tokenizer,
        output,
        ends=build_chat(recipe, tokenizer, generation_ends(model)).ends,
        dtype=dtype,
        recipe=run.recipe.read_text(encoding="utf-8"),
        base_model=recipe.model.path,
        datasets=[source.label for source in recipe.data.sources],
        results=card_lines(results),
        merge_lora=merge_lora,
        what="OUTPUT",
        weights=whole_weights(model, dtype=dtype, keep=True) if merge_lora else None,
    )
    if push_to_hub is not None:
        upload(path, push_to_hub)
    return path


def check_repository(repository: str) -> None:
    """Whether a model can be pushed there without replacing anything.

    Raises:
        ConfigError: no Hub id, or the repository holds files already.
        ModelError: the Hub is out of reach.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub: {repository!r}, expected OWNER/NAME ({error})") from error
    try:
        files = HfApi().list_repo_files(repository)
    except RepositoryNotFoundError:
        return
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"--push-to-hub {repository!r}: the Hub cannot be reached ({first}); check the connection, or "
            "leave --push-to-hub out"
        ) from error
    if set(files) - {".gitattributes"}:
        raise ConfigError(
            f"--push-to-hub {repository!r}: the repository holds {len(files)} files already, expected a new "
            "or empty one; nothing is ever overwritten: choose another id"
        )


def upload(path: Path, repository: str) -> None:
    """Create the Hub repository if it is missing and upload the directory.

    Raises:
        ModelError: not logged in, no rights, or the Hub is out of reach.
    """
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)  # empty, if it is there: `check_repository`
        api.upload_folder(repo_id=repository, folder_path=path)
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"--push-to-hub {repository!r}: the upload failed ({first}); log in with `hf auth login`, check "
            f"the id, and run it again; the model is in {path}"
        ) from error


def _checkpoint(directory: Path, step: int | None) -> Path:
    if step is not None:
        return complete_of(directory, step, "--step")
    if (found := last_complete(directory)) is None:
        raise ConfigError(f"{directory}: no complete checkpoint; train on, or lower grpo.save_steps")
    return found
