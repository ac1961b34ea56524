"""Evaluation of a model on held-out tasks or on a suite: planned, run or gone on with, and written down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.config.run import RunSettings
from sandbox_rl.config.suite import Suite
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, InfraFault
from sandbox_rl.evaluation.directory import EvaluationDirectory
from sandbox_rl.evaluation.plan import MODES, EvaluationPlan, identity_of, short_hash
from sandbox_rl.evaluation.results import Results, results_of, results_of_journal
from sandbox_rl.evaluation.run import read_rows, run_evaluation
from sandbox_rl.journal import Journal
from sandbox_rl.outputs import check_place
from sandbox_rl.policies.openai_chat import EndpointSettings
from sandbox_rl.runs.evaluation_engines import engines_of
from sandbox_rl.runs.subjects import Subject
from sandbox_rl.tasks.prompts import load_prompt_set
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.loop import LoopThread


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What is asked for on the command line.

    Args:
        target: path of a recipe or a suite, or the name of one that comes along.
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
    # Before anything is loaded.
    endpoint = EndpointSettings.named(options.base_url, options.model, options.api_key_env)
    subject = Subject.open(options.target, options.overrides, samples=options.samples)
    output = EvaluationDirectory(_output(subject, options))
    stored = output.stored(resume=options.resume)
    model = endpoint or _local_model(subject, options, display)
    local = isinstance(model, ModelSettings)
    plan = subject.plan(model.path if isinstance(model, ModelSettings) else model.model, modes=modes)
    identity = identity_of(
        plan, model=model_identity(model), settings=settings_identity(subject.settings, plan, local=local)
    )
    for part, why in subject.skipped.items():
        display.say(f"Left out: {part} ({why})")
    fault = ""
    try:
        with output.opened(identity, stored):
            _run(subject, plan, model, output, display)
    except InfraFault as error:
        if not any(row.reward is not None for row in read_rows(output.journal).values()):
            raise
        fault = str(error)
    results = results_of_journal(plan, output.journal)
    output.write(results)
    return EvaluationOutcome(output.path, results, fault)


def _run(
    subject: Subject,
    plan: EvaluationPlan,
    model: ModelSettings | EndpointSettings,
    output: EvaluationDirectory,
    display: Display,
) -> None:
    """Run what the journal lacks; where it lacks nothing, nothing needs a model."""
    known = read_rows(output.journal)
    if not results_of(known.values(), plan).unjudged:
        return
    with (
        LoopThread() as loop,
        engines_of(subject, plan, model, loop=loop, log=output.path / "vllm.log", display=display) as engines,
        display.progress("Evaluating", plan.episodes) as bar,
        Journal(output.journal) as journal,
    ):
        for row in known.values():
            if row.reward is not None:
                bar.advance(row.reward)
        loop.run(
            run_evaluation(
                plan, engines, journal, known=known, on_episode=lambda row, _: bar.advance(row.reward)
            )
        )


def _output(subject: Subject, options: EvaluateOptions) -> Path:
    if options.output is not None:
        check_place(options.output, "--output")
        return options.output
    check_place(Path(subject.settings.output_dir), "output_dir")
    name = f"{subject.settings.name}-eval"
    if options.model is not None:
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", options.model).strip("-.")[-60:]
        name += f"-{words or short_hash(options.model)}"
    return Path(subject.settings.output_dir) / name


def _local_model(subject: Subject, options: EvaluateOptions, display: Display) -> ModelSettings:
    """The local model: the one named, else what the recipe starts from."""
    settings = subject.settings
    if options.model is not None:
        return settings.model.model_copy(update={"path": options.model})
    if isinstance(settings, Suite):
        if "path" not in settings.model.model_fields_set:
            raise ConfigError("--model: missing, expected a directory, a Hub id, or a name with --base-url")
        return settings.model
    from accelerate import PartialState

    from sandbox_rl.runs.starting_point import starting_point

    return starting_point(settings, base_dir=subject.base_dir, state=PartialState(), display=display)


_JUDGE_ADDRESS = {
    "base_url", "api_key_env", "timeout_s", "retries", "requests_per_second", "concurrency", "cache_dir",
}  # fmt: skip
"""Where a judge is and how it is asked does not change what it says."""


def model_identity(model: ModelSettings | EndpointSettings) -> dict[str, Any]:
    """Path, dtype, and of a directory what its files begin and end with: enough to distinguish checkpoints.

    Of an endpoint only its name for the model is known.
    """
    if isinstance(model, EndpointSettings):
        return {"endpoint": model.model}
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


def settings_identity(recipe: RunSettings, plan: EvaluationPlan, *, local: bool) -> dict[str, Any]:
    """What else results depend on: prompts, budgets, scoring, sandbox, and a local model's chat format."""
    directories = [Path(directory) for directory in recipe.prompts]
    domains = sorted({task.domain for part in plan.parts for task in part.tasks})
    sets = {domain: load_prompt_set(domain, directories) for domain in domains}
    value: dict[str, Any] = {
        "prompts": {
            name: short_hash(found.system, found.instance, found.plain_system, found.plain_instance)
            for name, found in sets.items()
        },
        "episode": recipe.episode.model_dump(mode="json"),
        "reward": recipe.reward.model_dump(mode="json", exclude={"workers": True, "judge": _JUDGE_ADDRESS}),
    }
    if "sandbox" in plan.modes:
        value["sandbox"] = recipe.sandbox.model_dump(mode="json")
        value["tools"] = list(recipe.tools)
    if local:
        value["chat"] = recipe.chat.model_dump(mode="json")
    return value
