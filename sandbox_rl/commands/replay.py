"""`sandbox-rl replay`: a run's records, played again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox_rl.command_line import DIFFERS, RunPath
from sandbox_rl.errors import ConfigError

app = typer.Typer()


@app.command()
def replay(
    run: RunPath,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EPISODE|RECIPE] [KEY=VALUE]...",
            help="An episode's id; a recipe whose rewards --rescore takes; values to replace.",
        ),
    ] = None,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Score all episodes again, by overrides such as reward.scorer=NAME."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where --rescore writes; a new file."),
    ] = None,
    files: Annotated[
        bool,
        typer.Option("--files", help="Write what each turn changed in the sandbox, for `view` to show it."),
    ] = False,
    to_step: Annotated[
        int | None,
        typer.Option("--to-step", metavar="K", help="Compute the updates up to checkpoint K again."),
    ] = None,
) -> None:
    """Play what a run has recorded again; exit code 1 where it comes out another way. Its records are not
    touched.

    EPISODE: its turns in a fresh sandbox; observations, ids, answer and reward are compared. With --files
    the files that each turn changed are written to RUN/files, which `sandbox-rl view` shows.
    --rescore: all of its answers with other scorers; whose reward, advantage and gradient would have changed.
    --to-step K: its updates from the recorded rollouts; the weights are compared with those of checkpoint K.
    """
    overrides = [word for word in words or () if "=" in word]
    named = [word for word in words or () if "=" not in word]
    recipes = [word for word in named if rescore and word.endswith((".yaml", ".yml"))]
    episodes = [word for word in named if word not in recipes]
    if output is not None and not rescore:
        raise ConfigError(f"--output: {str(output)!r} without --rescore, which alone writes something")
    if len(episodes) + rescore + (to_step is not None) != 1:
        raise ConfigError(
            f"replay: {' and '.join(episodes) or 'no episode'}{' and --rescore' * rescore}"
            f"{' and --to-step' * (to_step is not None)}, expected the id of one episode, or --rescore, or "
            "--to-step K"
        )
    if files and not episodes:
        raise ConfigError("--files: without an episode, expected its id; only an episode has files")
    if to_step is not None:
        if overrides:
            raise ConfigError(
                f"override {overrides[0]!r}: with --to-step a run is computed as it was; drop it"
            )
        _updates(run, to_step)
    elif rescore:
        _rescore(run, [*map(_rewards_of, recipes), *overrides], output)
    else:
        _episode(run, episodes[0], overrides, files=files)


def _updates(run: Path, step: int) -> None:
    from sandbox_rl.replay.updates import replay_training
    from sandbox_rl.terminal import Terminal

    outcome = replay_training(run, step, display=Terminal())
    if not outcome.differing:
        typer.echo(f"{run}: the weights after {step} updates are the same, sha256 {outcome.replayed}")
        return
    name, gap = next(iter(outcome.differing.items()))
    typer.echo(
        f"{run}: the weights after {step} updates differ in {len(outcome.differing)} tensors, most in {name} "
        f"(by {gap:.3g})\n  recorded: sha256 {outcome.recorded}\n  replayed: sha256 {outcome.replayed}"
    )
    raise typer.Exit(DIFFERS)


def _rewards_of(recipe: str) -> str:
    """The block `reward` of a recipe, as an override."""
    import json

    from sandbox_rl.config.load import read_source

    block = read_source(Path(recipe)).values.get("reward")
    if not isinstance(block, dict):
        raise ConfigError(f"{recipe}: it has no block 'reward', expected how to score; add one, or KEY=VALUE")
    return f"reward={json.dumps(block)}"


def _rescore(run: Path, overrides: list[str], output: Path | None) -> None:
    from sandbox_rl.replay.rescoring import rescore_to_file
    from sandbox_rl.terminal import Terminal

    display = Terminal()
    display.say(str(rescore_to_file(run, overrides, output, display=display)))


def _episode(run: Path, episode: str, overrides: list[str], *, files: bool) -> None:
    from sandbox_rl.replay.episodes import replay_episode
    from sandbox_rl.view.terminal import inert

    outcome = replay_episode(run, episode, overrides, files=files)
    if not outcome.differences:
        typer.echo(f"{outcome.episode}: the same again, {outcome.turns} turns, reward {outcome.reward}")
        return
    more = len(outcome.differences) - 1
    typer.echo(inert(f"{outcome.episode}: differs first in {outcome.differences[0]}"))
    if more:
        typer.echo(f"  and in {more} more after it")
    raise typer.Exit(DIFFERS)
