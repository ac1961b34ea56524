"""Results as a person reads them."""

from __future__ import annotations

import shlex

from sandbox_rl.display import Display
from sandbox_rl.evaluation.page import accuracy_rows
from sandbox_rl.runs.train import TrainResult
from sandbox_rl.training.checkpoints import last_complete, step_of

_SHOWN = {
    "turns": "turns per episode",
    "tokens/sampled": "sampled tokens per episode",
    "stop/submitted": "share that submitted",
    "infra_fault_rate": "infrastructure faults",
}


def show_training(result: TrainResult, display: Display, *, recipe: str, go_on: str) -> None:
    """The table of held-out results before and after, where everything is, and what can be done with it.

    Args:
        recipe: as it was named on the command line.
        go_on: the command that goes on with this run.
    """
    if result.interrupted:
        kept = last_complete(result.run / "checkpoints")
        where = "before the first update" if kept is None else f"with a checkpoint of step {step_of(kept)}"
        display.say(f"Stopped after step {result.steps}, {where}, in {result.run}")
        display.say(f"Go on with: {go_on}")
        return
    if result.finished_before:
        display.say(
            f"{result.run} is finished, after {result.steps} updates; nothing was changed. A higher "
            "grpo.max_steps goes on with it; without --resume a new run is started."
        )
    shown = [(when, r) for when, r in (("before", result.before), ("after", result.after)) if r is not None]
    if shown:
        rows = accuracy_rows([r.modes["sandbox"] for _, r in shown])
        rows[0] = ["accuracy", *(r.headline() for _, r in shown)]
        numbers = [r.metrics() for _, r in shown]
        for key, title in _SHOWN.items():
            rows.append([title, *(f"{found.get(key, 0.0):.2f}" for found in numbers)])
        display.table(
            f"{shown[-1][1].tasks} held-out tasks, {result.steps} updates",
            ["", *(when for when, _ in shown)],
            rows,
        )
    display.say(f"Run:   {result.run}")
    if result.export is not None:
        display.say(f"Model: {result.export}")
    display.say("\nWhat next:")
    for what, command in _next(result, recipe):
        display.say(f"  {what:<24}{command}")


def _next(result: TrainResult, recipe: str) -> list[tuple[str, str]]:
    """What a person may want to do with a run, and the command for it."""
    found = [("look at it", shlex.join(["sandbox-rl", "view", str(result.run)]))]
    if result.export is not None:
        model = ["--model", str(result.export)]
        # A small model knows only questions in the words and with the prompts that it was trained on.
        task = result.example
        question, domain = ("QUESTION", []) if task is None else (task.prompt, ["--domain", task.domain])
        ask = ["sandbox-rl", "run", question, "--recipe", recipe, *domain, *model]
        found += [
            ("ask the model", shlex.join(ask)),
            ("measure it", shlex.join(["sandbox-rl", "eval", recipe, *model])),
        ]
    return [*found, ("train on your own rows", "sandbox-rl init ROWS.jsonl")]
