"""`sandbox-rl run`: a model at work on the user's own question and files.

What happens goes to standard error, the answer to standard output.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox_rl.command_line import DONE_IN_PART, ApiKeyEnv, BaseUrl, Interrupted
from sandbox_rl.errors import ConfigError, InfraFault

if TYPE_CHECKING:
    from sandbox_rl.assistant import AssistantSettings, Assisted, AssistRequest, TerminalView

app = typer.Typer()

Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="off|full|HOST,…",
        help="What the sandbox may reach: nothing by default, every public host, or the hosts named.",
    ),
]


@app.command("run")
def run(
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="With --interactive it can be typed later.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Replace settings: episode.max_turns=20."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Directory or Hub id; with --base-url the endpoint's name for it."),
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="RECIPE", help="Take model, sandbox and budgets from this recipe."),
    ] = None,
    input: Annotated[
        Path | None, typer.Option("--input", metavar="PATH", help="Directory or file to copy in.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Where results go; by default runs/assistant, runs/assistant-2 …"
        ),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Go on in the same sandbox, message by message.")
    ] = False,
    network: Network = None,
    domain: Annotated[
        str, typer.Option("--domain", metavar="NAME", help="Whose prompts to use: the name of a prompt set.")
    ] = "general",
) -> None:
    """Let a model work on a question in a sandbox and see how it does it.

    Files are copied in and results copied out; nothing of yours is mounted or replaced.
    The answer goes to standard output, everything else to standard error.
    Exit code 3: there is no answer, or a budget ended it.
    """
    from rich.console import Console

    from sandbox_rl.assistant import AssistRequest, TerminalView, load_assistant
    from sandbox_rl.policies.openai_chat import EndpointSettings

    _check_question(question, interactive=interactive)
    settings = load_assistant(recipe, overrides or (), network=network, model=None if base_url else model)
    view = TerminalView(Console(stderr=True), answers=interactive)
    # Somebody is waiting: fewer tries than a run of days has.
    endpoint = EndpointSettings.named(base_url, model, api_key_env, retries=2)
    done = _assist(AssistRequest(question, domain, endpoint, input, output, interactive), settings, view)
    if done is not None:
        _report(done, view, interactive=interactive)
        _leave(done, view, interactive=interactive)


def _check_question(question: str | None, *, interactive: bool) -> None:
    if question is None and not interactive:
        raise ConfigError("QUESTION is missing; write it behind `run`, or add --interactive to type it")
    if question is not None and not question.strip():
        raise ConfigError("QUESTION is empty, expected some words; write them behind `run`")


def _assist(request: AssistRequest, settings: AssistantSettings, view: TerminalView) -> Assisted | None:
    from sandbox_rl.assistant import assist

    try:
        return assist(request, settings, view)
    except KeyboardInterrupt:
        view.close()
        view.say("Interrupted; nothing was saved.")
        raise Interrupted from None


def _report(done: Assisted, view: TerminalView, *, interactive: bool) -> None:
    from sandbox_rl.assistant import shown

    conversation, saved = done.conversation, done.saved
    answer = conversation.trajectory.answer.text
    if answer and not interactive:  # else the view has shown it
        typer.echo(shown(answer).rstrip("\n"))
    for note in conversation.notes:
        view.say(note, "yellow")
    view.say_some("Not copied out", saved.left_out)
    names = ", ".join((*saved.written[:10], *(["…"] if len(saved.written) > 10 else []), done.trajectory))
    view.say(f"Saved in {done.directory}: {names}", "dim")


def _leave(done: Assisted, view: TerminalView, *, interactive: bool) -> None:
    """The exit code says how it ended."""
    from sandbox_rl.types import AnswerStatus, StopReason

    trajectory = done.conversation.trajectory
    if done.conversation.interrupted:
        view.say("Interrupted; the sandbox is gone.")
        raise Interrupted
    if trajectory.stop is StopReason.INFRA_FAULT:
        raise InfraFault(trajectory.fault)
    empty = not trajectory.answer.text.strip()
    if not interactive and (trajectory.stop is not StopReason.SUBMITTED or empty):
        if empty:
            status = trajectory.answer.status
            what = "empty" if status is AnswerStatus.OK else status.value
            view.say(f"There is no answer: answer.txt is {what}.", "yellow")
        raise typer.Exit(DONE_IN_PART)
