"""Evaluation of a model on a recipe's held-out tasks or on a suite: with a sandbox, without one, or both.

::

    OUTPUT/
      evaluation.json   what makes this measurement itself; `--resume` compares it
      episodes.jsonl    every episode, whole
      results.json      see docs/evaluation.md
      results.md        the same as a page
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_rl.commands.evaluate_engines import Engines, endpoint_engines, local_engines
from sandbox_rl.commands.evaluate_identity import model_identity, settings_identity
from sandbox_rl.commands.suite import Subject, open_subject
from sandbox_rl.config.suite import Suite
from sandbox_rl.display import Display
from sandbox_rl.errors import ConfigError, InfraFault, UserError
from sandbox_rl.evaluation.identity import check_same, identity_of, short_hash
from sandbox_rl.evaluation.page import page
from sandbox_rl.evaluation.plan import MODES, EvaluationPlan
from sandbox_rl.evaluation.results import Results
from sandbox_rl.evaluation.run import results_of_journal, run_evaluation
from sandbox_rl.outputs import check_place
from sandbox_rl.policies.openai_chat import EndpointSettings
from sandbox_rl.runs.directory import check_output_dir, write_atomically
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.loop import LoopThread

__all__ = ["EvaluateOptions", "EvaluationOutcome", "evaluate"]


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
        subject.settings.name,
        name,
        subject.parts,
        modes,
        subject.settings.seed,
        subject.sampling,
        subject.skipped,
    )
    identity = identity_of(
        plan,
        model={"endpoint": name} if model is None else model_identity(model),
        settings=settings_identity(subject.settings, plan, local=model is not None),
    )
    if stored is not None:
        check_same(stored, identity, str(output))
    for part, why in subject.skipped.items():
        display.say(f"Left out: {part} ({why})")
    journal = output / "episodes.jsonl"
    new_parent = not output.parent.exists()
    if stored is None:
        output.mkdir(parents=True)
        write_atomically(output / "evaluation.json", json.dumps(identity, indent=1) + "\n")
    fault = ""
    try:
        with _alone(output):
            results = results_of_journal(plan, journal)
            if results.unjudged:  # else nothing needs a model
                with (
                    LoopThread() as loop,
                    _engines(
                        subject, plan, model, endpoint, loop=loop, output=output, display=display
                    ) as found,
                    display.progress("Evaluating", plan.episodes) as bar,
                ):
                    results = loop.run(run_evaluation(plan, found, journal, on_episode=bar.advance))
    except (UserError, InfraFault) as error:
        results = results_of_journal(plan, journal)
        if stored is None and not (journal.exists() and journal.stat().st_size):
            shutil.rmtree(output)  # it is ours and holds nothing: the next try may have the name
            if new_parent:
                with suppress(OSError):  # somebody else uses it by now
                    output.parent.rmdir()
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
        check_place(options.output, "--output")
        return options.output
    check_output_dir(Path(subject.settings.output_dir))
    name = f"{subject.settings.name}-eval"
    if options.model is not None:
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", options.model).strip("-.")[-60:]
        name += f"-{words or short_hash(options.model)}"
    return Path(subject.settings.output_dir) / name


def _stored(output: Path, *, resume: bool) -> dict[str, Any] | None:
    """The identity of the run to go on with; None for a new one."""
    if not resume:
        if os.path.lexists(output):
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


def _engines(
    subject: Subject,
    plan: EvaluationPlan,
    model: ModelSettings | None,
    endpoint: EndpointSettings | None,
    *,
    loop: LoopThread,
    output: Path,
    display: Display,
) -> AbstractContextManager[Engines]:
    if endpoint is not None:
        return nullcontext(
            endpoint_engines(subject.settings, plan.modes, endpoint, base_dir=subject.base_dir)
        )
    assert model is not None
    return local_engines(
        subject.settings,
        plan.modes,
        model,
        base_dir=subject.base_dir,
        tasks=[task for part in plan.parts for task in part.tasks],
        loop=loop,
        log=output / "vllm.log",
        display=display,
    )
