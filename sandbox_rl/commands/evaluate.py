"""Evaluation of a model on a recipe's held-out tasks or on a suite: with a sandbox, without one, or both.

::

    OUTPUT/
      evaluation.json   what makes this measurement itself; `--resume` compares it
      episodes.jsonl    every episode, whole
      results.json      see docs/evaluation.md
      results.md        the same as a page
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.commands.display import Display
from sandbox_rl.commands.run_dir import check_output_dir, write_atomically
from sandbox_rl.commands.suite import Subject, open_subject
from sandbox_rl.errors import ConfigError, InfraFault, UserError
from sandbox_rl.evaluation.identity import check_same, identity_of, short_hash
from sandbox_rl.evaluation.page import page
from sandbox_rl.evaluation.plan import MODES, EvaluationPlan
from sandbox_rl.evaluation.results import Results
from sandbox_rl.evaluation.run import results_of_journal, run_evaluation
from sandbox_rl.policies.openai_chat import EndpointSettings
from sandbox_rl.settings import Settings
from sandbox_rl.tasks.prompts import load_prompt_set
from sandbox_rl.training.config import ModelSettings

__all__ = ["EvaluateOptions", "EvaluationOutcome", "evaluate"]

_JUDGE_ADDRESS = {
    "base_url", "api_key_env", "timeout_s", "retries", "requests_per_second", "concurrency", "cache_dir",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What is asked for on the command line.

    Args:
        target: path of a recipe or a suite, or the name of a shipped suite.
        model: directory, Hub id, or name at the endpoint; None takes the recipe's own.
        mode: "sandbox", "plain" or "both".
        samples: replaces those of the recipe or of every part.
    """

    target: str
    overrides: Sequence[str] = ()
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    mode: str = "sandbox"
    samples: int | None = None
    output: Path | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class EvaluationOutcome:
    """Results and where they lie. `fault` says why the run ended early, "" where it did not."""

    output: Path
    results: Results
    fault: str = ""


def evaluate(options: EvaluateOptions, *, display: Display) -> EvaluationOutcome:
    """Run what is missing, and write `results.json` and `results.md`.

    Raises:
        UserError: something in the recipe, the data, the model or the machine; nothing is left behind unless
            episodes had been run.
        InfraFault: not one episode could be judged because of failures on our side.
    """
    modes = MODES if options.mode == "both" else (options.mode,)
    if not set(modes) <= set(MODES):
        raise ConfigError(f"--mode: {options.mode!r}, expected sandbox, plain or both")
    endpoint = _endpoint(options)
    subject = open_subject(options.target, options.overrides, samples=options.samples)
    output = _output(subject, options)
    stored = _stored(output, resume=options.resume)
    model = None if endpoint is not None else _model(subject, options, display)
    name = endpoint.model if endpoint is not None else (model.path if model is not None else "")
    plan = EvaluationPlan(
        subject.recipe.name,
        name,
        subject.parts,
        modes,
        subject.recipe.seed,
        subject.sampling,
        subject.skipped,
    )
    identity = identity_of(
        plan,
        model={"endpoint": name} if model is None else _model_identity(model),
        settings=_settings(subject, plan, local=model is not None),
    )
    if stored is not None:
        check_same(stored, identity, str(output))
    for part, why in subject.skipped.items():
        display.say(f"Left out: {part} ({why})")
    engines = _engines(subject, modes, model, endpoint)
    journal = output / "episodes.jsonl"
    if stored is None:
        output.mkdir(parents=True)
        write_atomically(output / "evaluation.json", json.dumps(identity, indent=1) + "\n")
    fault = ""
    try:
        with _alone(output), display.progress("Evaluating", plan.episodes) as bar:
            results = asyncio.run(run_evaluation(plan, engines, journal, on_episode=bar.advance))
    except (UserError, InfraFault) as error:
        results = results_of_journal(plan, journal)
        if stored is None and not (journal.exists() and journal.stat().st_size):
            shutil.rmtree(output)  # it is ours and holds nothing: the next try may have the name
        if isinstance(error, UserError) or not any(mode.episodes for mode in results.modes.values()):
            raise
        fault = str(error)
    write_atomically(output / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
    write_atomically(output / "results.md", page([results]))
    return EvaluationOutcome(output, results, fault)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Two processes at one journal would run everything twice; the lock goes with its process.

    Raises:
        ConfigError: another one is at it.
    """
    with (output / "evaluation.json").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"--output: another process is at work on {output}; wait for it, or name another directory"
            ) from error
        yield


def _endpoint(options: EvaluateOptions) -> EndpointSettings | None:
    if options.base_url is None:
        if options.api_key_env is not None:
            raise ConfigError("--api-key-env: given without --base-url, which names the endpoint; add it")
        return None
    if options.model is None:
        raise ConfigError("--base-url: given without --model; name the model that the endpoint serves")
    if not re.fullmatch(r"https?://\S+", options.base_url):
        raise ConfigError(f"--base-url: {options.base_url!r}, expected http://HOST:PORT/v1")
    settings = EndpointSettings(base_url=options.base_url, model=options.model)
    if options.api_key_env is None:
        return settings
    if not os.environ.get(options.api_key_env):
        raise ConfigError(
            f"--api-key-env: variable {options.api_key_env!r} is not set; export it with the key"
        )
    return settings.model_copy(update={"api_key_env": options.api_key_env})


def _output(subject: Subject, options: EvaluateOptions) -> Path:
    if options.output is not None:
        check_output_dir(options.output)
        return options.output
    check_output_dir(Path(subject.recipe.output_dir))
    name = f"{subject.recipe.name}-eval"
    if options.model is not None:
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", options.model).strip("-.")[-60:]
        name += f"-{words or short_hash(options.model)}"
    return Path(subject.recipe.output_dir) / name


def _stored(output: Path, *, resume: bool) -> dict[str, Any] | None:
    """The identity of the run to go on with; None for a new one."""
    if not resume:
        if output.exists():
            raise ConfigError(
                f"--output: {output} exists; go on with it by --resume, or name another directory"
            )
        return None
    path = output / "evaluation.json"
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--resume: {path} cannot be read ({error}), expected the directory of an earlier evaluation; "
            "leave --resume away to start one"
        ) from error
    return stored


def _model(subject: Subject, options: EvaluateOptions, display: Display) -> ModelSettings:
    """The local model: the one named, else what the recipe starts from."""
    recipe = subject.recipe
    if options.model is not None:
        return recipe.model.model_copy(update={"path": options.model})
    if subject.is_suite:
        if "path" not in recipe.model.model_fields_set:
            raise ConfigError("--model: missing, expected a directory, a Hub id, or a name with --base-url")
        return recipe.model
    from accelerate import PartialState

    from sandbox_rl.commands.starting_point import starting_point

    return starting_point(recipe, base_dir=subject.base_dir, state=PartialState(), display=display)


def _model_identity(model: ModelSettings) -> dict[str, Any]:
    """Path, dtype, and of a directory what its files begin and end with: enough to tell checkpoints apart."""
    value: dict[str, Any] = {"path": model.path, "revision": model.revision, "dtype": model.dtype}
    folder = Path(model.path)
    if not folder.is_dir():
        return value
    parts: list[bytes | str] = []
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja", ".bin", ".model") and file.is_file():
            with file.open("rb") as content:
                size = file.stat().st_size
                parts += [file.name, str(size), content.read(1 << 20)]
                content.seek(max(0, size - (1 << 20)))
                parts.append(content.read())
    return value | {"path": str(folder.resolve()), "files": short_hash(*parts)}


def _settings(subject: Subject, plan: EvaluationPlan, *, local: bool) -> dict[str, Any]:
    recipe = subject.recipe
    directories = [Path(directory) for directory in recipe.prompts]
    domains = sorted({task.domain for part in plan.parts for task in part.tasks})
    sets = {domain: load_prompt_set(domain, directories) for domain in domains}
    value = {
        "prompts": {
            name: short_hash(found.system, found.instance, found.plain_system, found.plain_instance)
            for name, found in sets.items()
        },
        "episode": recipe.episode.model_dump(mode="json"),
        "reward": recipe.reward.model_dump(mode="json", exclude={"workers": True, "judge": _JUDGE_ADDRESS}),
    }
    if "sandbox" in plan.modes:
        value["sandbox"] = _dump(recipe.sandbox)
    if local:
        value["chat"] = _dump(recipe.chat)
    return value


def _dump(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _engines(
    subject: Subject, modes: Sequence[str], model: ModelSettings | None, endpoint: EndpointSettings | None
) -> Any:
    from sandbox_rl.commands.evaluate_engines import endpoint_engines, local_engines

    if endpoint is not None:
        return endpoint_engines(subject.recipe, modes, endpoint, base_dir=subject.base_dir)
    assert model is not None
    return local_engines(subject.recipe, modes, model, base_dir=subject.base_dir)
