"""The command line. Thin: parses, calls `commands`, and turns exceptions into one line and an exit code.

Exit codes: 0 done, 1 a self-check that failed, 2 the user's mistake, 3 our failure or done in part, 130
interrupted.
Everything heavy is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from sandbox_rl import __version__, cli_data, cli_eval, cli_run, cli_sandbox
from sandbox_rl.cli_eval import DONE_IN_PART
from sandbox_rl.environment_errors import environment_error
from sandbox_rl.errors import InfraFault, SandboxRLError, SetupError, UserError

if TYPE_CHECKING:
    from sandbox_rl.config.recipe import Recipe
    from sandbox_rl.display import Display

__all__ = ["app", "main"]

DEBUG_VARIABLE = "SANDBOX_RL_DEBUG"
INTERRUPTED = 130

app = typer.Typer(
    name="sandbox-rl",
    help="Train language models by reinforcement learning inside code sandboxes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_sandbox.app)
app.add_typer(cli_data.app)
app.add_typer(cli_run.app)
app.add_typer(cli_eval.app)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, as in recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replace values of the recipe: grpo.learning_rate=1e-6."),
]


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Train language models by reinforcement learning inside code sandboxes."""


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
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[RUN]",
            help="Go on from the last complete checkpoint of RUN, a directory or a name; of the newest run.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check recipe, data, model and sandbox, print the recipe, and leave."),
    ] = False,
) -> None:
    """Train a policy in sandboxes and export it.

    Ends with held-out accuracy before and after, and the path of the exported model.
    The same under `accelerate launch`: python -m sandbox_rl.train RECIPE [KEY=VALUE]...
    """
    loaded, base_dir = _load(recipe, overrides)
    first = os.environ.get("RANK", "0") == "0"  # of the processes of a launcher one draws
    terminal = _display(first)
    if dry_run:
        from sandbox_rl.config.recipe import resolved
        from sandbox_rl.runs.dry_run import dry_run as check

        check(loaded, base_dir=base_dir, display=terminal)
        if first:
            typer.echo(resolved(loaded), nl=False)
        return
    from sandbox_rl.commands.report import show_training
    from sandbox_rl.runs.train import train as run

    result = run(loaded, base_dir=base_dir, resume=resume, display=terminal)
    if first:  # the others measured the same
        show_training(result, terminal)
    if result.interrupted:
        raise typer.Exit(DONE_IN_PART)


@app.command()
def warmup(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Fine-tune the model on successful expert episodes, so that it can call tools at all.

    The result is cached below the output directory; `train` finds it there.
    """
    loaded, base_dir = _load(recipe, overrides)
    from sandbox_rl.runs.warmup import warmup as run
    from sandbox_rl.terminal import Terminal

    terminal = Terminal()
    result = run(loaded, base_dir=base_dir, display=terminal)
    how = "Found" if result.cached else "Made"
    terminal.say(
        f"{how}: {result.successful} of {result.episodes} expert episodes were successful, "
        f"loss {result.loss:.3f}"
    )
    terminal.say(str(result.path))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run, e.g. runs/quickstart.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory to write; must not exist.")],
    checkpoint: Annotated[
        int | None, typer.Option("--step", help="Checkpoint of this step instead of the newest complete one.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge/--no-merge", help="Merge LoRA adapters into the model.")
    ] = True,
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="ID", help="Also upload it under this Hub id.")
    ] = None,
) -> None:
    """Write a run's checkpoint as a model directory that transformers and vLLM load."""
    from sandbox_rl.commands.export import export as run

    path = run(run_dir, output, step=checkpoint, merge_lora=merge, push_to_hub=push_to_hub)
    typer.echo(str(path))


def _display(first: bool) -> Display:
    from sandbox_rl.display import Silent
    from sandbox_rl.terminal import Terminal

    return Terminal() if first else Silent()


def _load(path: Path, overrides: list[str] | None) -> tuple[Recipe, Path]:
    from sandbox_rl.config.load import load_recipe

    return load_recipe(path, overrides or ()), path.resolve().parent


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    _quiet(debug)
    _share_cores()
    try:
        app(arguments)
    except UserError as error:
        _end(error, 2)
    except (InfraFault, SandboxRLError) as error:
        _end(error, DONE_IN_PART)
    except Exception as error:
        said = environment_error(error)
        if said is not None:
            _end(SetupError(said), 2, error)
        defect = f"{type(error).__name__}: {error}"
        _end(SandboxRLError(f"{defect} (a defect of ours; {DEBUG_VARIABLE}=1 shows where)"), 3, error)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED and not isinstance(leaving, cli_run.Interrupted):
            # Typer's own answer to Ctrl-C says nothing.
            typer.echo("Interrupted; `--resume` goes on from what is complete.", err=True)
        raise


def _end(error: SandboxRLError, code: int, cause: Exception | None = None) -> NoReturn:
    if os.environ.get(DEBUG_VARIABLE):
        raise error from cause
    if not error.said_elsewhere:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
    sys.exit(code)


def _share_cores() -> None:
    """Before torch is imported: its idle threads are to sleep instead of spinning.

    Trainer, server, rollouts and sandboxes share the processors: a trainer that spins beside a server on the
    same few cores keeps it, and itself, from working.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quiet(debug: bool) -> None:
    """Our own warnings are shown; chatter of the libraries only for debugging."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        # On a CPU it misses faster kernels aloud whenever it is imported, needed or not.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        # Its logger sets its own level, and prints each of its ten tries, when it is imported.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        for noisy in ("trl", "accelerate", "datasets", "peft", "torch"):
            logging.getLogger(noisy).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
