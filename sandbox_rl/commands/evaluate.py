"""`sandbox-rl eval` and `compare`: a model measured, with a sandbox, without one, or both; and several."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.command_line import DONE_IN_PART, ApiKeyEnv, BaseUrl

app = typer.Typer()


class Mode(StrEnum):
    """With a computer, without one, or the comparison."""

    SANDBOX = "sandbox"
    PLAIN = "plain"
    BOTH = "both"


@app.command("eval")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SUITE", help="YAML file, or a name that comes along: quickstart, offline."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace values: limit=5.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Directory, Hub id, or name at the endpoint; by default what the recipe trains."),
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    mode: Annotated[
        Mode, typer.Option(help="In sandboxes, plainly without, or both and their difference.")
    ] = Mode.SANDBOX,
    samples: Annotated[int | None, typer.Option(metavar="K", help="Episodes per task, for avg@k.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where results go; must not exist yet.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with what lies in --output: run what has no judged result yet."),
    ] = False,
) -> None:
    """Measure a model on a recipe's held-out tasks or on a suite.

    Writes results.json and results.md. Exit code 3: something could not be judged, --resume tries it again.
    """
    from sandbox_rl.evaluation.page import no_calls_hint, show_results
    from sandbox_rl.runs.evaluate import EvaluateOptions
    from sandbox_rl.runs.evaluate import evaluate as run
    from sandbox_rl.terminal import Terminal

    terminal = Terminal()
    options = EvaluateOptions(
        target, overrides or (), model, base_url, api_key_env, mode.value, samples, output, resume
    )
    outcome = run(options, display=terminal)
    show_results(outcome.results, terminal)
    if hint := no_calls_hint(outcome.results, endpoint=base_url is not None):
        terminal.say(hint)
    terminal.say(str(outcome.output))
    if outcome.results.unjudged:
        because = f": {outcome.fault}" if outcome.fault else ""
        terminal.say(
            f"{outcome.results.unjudged} episodes were not judged, {outcome.results.faults} of them were "
            f"infrastructure faults{because}; --resume tries them again"
        )
        raise typer.Exit(DONE_IN_PART)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="What `eval` wrote.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Also write the page to this file.")
    ] = None,
) -> None:
    """Put evaluations side by side; paired with the first where their tasks are the same."""
    from sandbox_rl.evaluation.page import compare as run

    typer.echo(run(runs, output=output), nl=False)
