"""`sandbox-rl warmup`: supervised fine-tuning on expert episodes, before reinforcement learning."""

from __future__ import annotations

import typer

from sandbox_rl.command_line import Overrides, RecipePath, open_recipe, terminal

__all__ = ["app"]

app = typer.Typer()


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
