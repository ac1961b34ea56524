"""The command line. The commands are in `commands/`; here their exceptions become one line and an exit code.

Exit codes: 0 done, 1 a check that failed or a replay that differs, 2 the user's mistake, 3 our failure or
done in part, 130 interrupted.
Everything heavy is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from sandbox_rl import __version__
from sandbox_rl.command_line import DONE_IN_PART, INTERRUPTED, Interrupted, first_process
from sandbox_rl.commands import check, data, evaluate, machine, models, replay, run, train, view
from sandbox_rl.errors import InfraFault, SandboxRLError, SetupError, UserError, environment_error
from sandbox_rl.registry import Registry

DEBUG_VARIABLE = "SANDBOX_RL_DEBUG"

OURS = (data, train, models, evaluate, run, view, replay, check, machine)

COMMANDS: Registry[typer.Typer] = Registry(
    "command",
    {},
    group="sandbox_rl.commands",
    check=lambda thing: isinstance(thing, typer.Typer),
    expected="a typer.Typer",
)
"""Commands of installed packages, by entry points."""


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Train language models by reinforcement learning inside code sandboxes."""


def whole_app() -> typer.Typer:
    """Our commands and those of installed packages.

    Raises:
        ConfigError: one of these cannot be had.
    """
    whole = typer.Typer(
        name="sandbox-rl",
        help="Train language models by reinforcement learning inside code sandboxes.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    whole.callback()(_root)
    for command in OURS:
        whole.add_typer(command.app)
    for name in COMMANDS.installed:
        whole.add_typer(COMMANDS.find(name))
    return whole


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    _quiet(debug)
    # Before torch is imported: its idle threads are to sleep. A trainer that spins beside a server on the
    # same few cores keeps it, and itself, from working.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        whole_app()(arguments)
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
        if leaving.code == INTERRUPTED and not isinstance(leaving, Interrupted) and first_process():
            # Typer's own answer to Ctrl-C says nothing.
            typer.echo("Interrupted; `--resume` goes on from what is complete.", err=True)
        raise


def _end(error: SandboxRLError, code: int, cause: Exception | None = None) -> NoReturn:
    if os.environ.get(DEBUG_VARIABLE):
        raise error from cause
    if not error.said_elsewhere:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
    sys.exit(code)


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
