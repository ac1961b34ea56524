"""`sandbox-rl train` and `warmup`: train a policy in sandboxes, measure it and export it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from sandbox_rl.command_line import (
    INTERRUPTED,
    Interrupted,
    Overrides,
    RecipePath,
    first_process,
    open_recipe,
    terminal,
)
from sandbox_rl.display import Display, Silent
from sandbox_rl.errors import ConfigError

if TYPE_CHECKING:
    from sandbox_rl.config.recipe import Recipe
    from sandbox_rl.runs.launch import Launch

app = typer.Typer()

Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[RUN]",
        help="Go on from the last complete checkpoint of RUN, a directory or name; else the newest.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, show one task, and leave; nothing is written.")
]
Chaos = Annotated[
    str | None,
    typer.Option(
        "--chaos",
        metavar="SHARE",
        help="For tests: inject faults into this share of the episodes, 0 to 1 (chaos.share).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the results at the end and nothing before.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print lines of JSON for a program: say, update (its metrics), table.")
]


class _Train(TyperCommand):
    """`--resume` may stand alone: what follows names a run unless it is an option, a value or a recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give every `--resume` its value."""
        given: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--resume":
                named = rest and not rest[0].startswith("-") and "=" not in rest[0]
                named = named and not rest[0].endswith((".yaml", ".yml"))
                word = f"--resume={rest.pop(0) if named else ''}"
            given.append(word)
        parsed: list[str] = super().parse_args(ctx, given)
        return parsed


@app.command(cls=_Train)
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    chaos: Chaos = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy in sandboxes and export it.

    Ends with held-out accuracy before and after, and the path of the exported model.
    Ctrl-C finishes the step, saves, says how to go on and ends with exit code 0; a second one ends at once,
    with 130. SIGTERM to any process gives up the episodes of the step, saves and ends with exit code 0.
    Uses all CUDA cards, or as many processes as launch.processes says; the same under a launcher of your own:
    accelerate launch -m sandbox_rl train RECIPE [KEY=VALUE]...
    """
    given = [*(overrides or []), *([] if chaos is None else [f"chaos.share={chaos}"])]
    loaded, base_dir = open_recipe(recipe, given)
    if quiet and as_json:
        raise ConfigError("--quiet and --json, expected one: what is to be seen is nothing, or lines of JSON")
    display = terminal(json=as_json)
    if dry_run:
        from sandbox_rl.config.recipe import resolved
        from sandbox_rl.runs.dry_run import dry_run as check

        display.say(resolved(loaded))
        check(loaded, base_dir=base_dir, display=display)
        return
    from sandbox_rl.runs.launch import cards_here, cards_that_train, plan_launch

    cards = cards_here()
    training = cards_that_train(loaded, cards)
    launch = plan_launch(loaded.launch, cards=cards, training=training, environment=os.environ)
    shown = Silent() if quiet else display
    if launch is not None:
        _start(launch, loaded, shown)
    from sandbox_rl.training.stopping import EndedNow, Owner, end_with_launcher

    end_with_launcher()
    from sandbox_rl.runs.report import show_training
    from sandbox_rl.runs.train import train as run

    def go_on(directory: Path) -> str:
        return shlex.join(["sandbox-rl", "train", str(recipe), *given, "--resume", str(directory)])

    def say(text: str) -> None:
        if first_process():
            typer.echo(text, err=True)

    try:
        result = run(loaded, base_dir=base_dir, resume=resume, display=shown, owner=Owner(say, go_on))
    except EndedNow:
        raise Interrupted from None
    show_training(result, display, recipe=str(recipe), go_on=go_on(result.run))


def _start(launch: Launch, recipe: Recipe, display: Display) -> NoReturn:
    """Run the processes of a launch, and end with their exit code: they have reported all."""
    from sandbox_rl.runs.division import check_division
    from sandbox_rl.runs.launch import run_launch

    check_division(recipe, launch.division)
    display.say(f"starting {launch}")
    code = run_launch(launch, sys.argv[1:])
    raise Interrupted if code == INTERRUPTED else typer.Exit(code)


@app.command()
def warmup(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Fine-tune the model on successful expert episodes, so that it can call tools at all.

    The result is cached below the output directory; `train` finds it there.
    """
    loaded, base_dir = open_recipe(recipe, overrides)
    from sandbox_rl.runs.warmup import warmup as run

    display = terminal()
    result = run(loaded, base_dir=base_dir, display=display)
    how = "Found" if result.cached else "Made"
    display.say(
        f"{how}: {result.successful} of {result.episodes} expert episodes were successful, "
        f"loss {result.loss:.3f}"
    )
    display.say(str(result.path))
