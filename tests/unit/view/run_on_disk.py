"""A run's directory as `train` leaves it, made without training: journal, metrics, ledger, tokenizer …"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from sandbox_rl.journal import Journal
from sandbox_rl.types import (
    Action,
    Answer,
    AnswerStatus,
    MalformedCall,
    Observation,
    Reward,
    Rollout,
    StopReason,
    Task,
    ToolCall,
    Trajectory,
    Turn,
    TurnTiming,
)

__all__ = ["GROUP", "Steps", "bash", "make_run", "rollout", "write_episode"]

GROUP = 4
START = 1_795_000_000.0
Steps = Sequence[tuple[str, str]]
"""Commands and what they printed."""


def bash(*steps: tuple[str, str]) -> tuple[Turn, ...]:
    """Turns of one command each, then one that submits."""
    turns = [
        Turn(
            Action((3, 4, 5, 2), (-0.5, -0.25, -1.0, -0.01), "stop", 1),
            (ToolCall("execute_bash", {"command": command}),),
            (Observation(output, "execute_bash", exit_code=0, seconds=0.01),),
            (0, 6, 7),
            TurnTiming(0.01, 0.01),
        )
        for command, output in steps
    ]
    submit = (ToolCall("submit", {}),)
    end = Turn(Action((8, 2), (-0.1, -0.2), "stop", 1), submit, (Observation("", "submit", submitted=True),))
    return (*turns, end)


def rollout(
    id: str, turns: tuple[Turn, ...], answer: str, reward: float | None, task: str = "task", **more: object
) -> Rollout:
    """An episode of the domain "math"."""
    status = AnswerStatus.OK if answer else AnswerStatus.MISSING
    stop = StopReason.SUBMITTED if reward is not None else StopReason.INFRA_FAULT
    trajectory = Trajectory(task, (1, 9, 0), turns, stop, Answer(status, answer), id, seconds=0.1)
    detail = str(more.pop("detail", "equal" if reward else "not equal"))
    return Rollout(
        trajectory, Reward(reward, {"math": reward or 0.0}, detail), Task(task, "?", "42", domain="math")
    )


def write_episode(journal: Journal, done: Rollout, step: int = 0, phase: str = "train") -> None:
    """As an episode goes."""
    trajectory = done.trajectory
    journal.started(trajectory.episode_id, done.task, trajectory.prompt_ids, phase=phase, step=step)
    for turn in trajectory.turns:
        journal.turn(trajectory.episode_id, turn)
    journal.ended(done, phase=phase, step=step)


def make_run(
    directory: Path,
    *,
    groups: int = 6,
    change: Callable[[Journal], object] = lambda journal: None,
    ledger: bool = True,
    finished: bool = True,
) -> Path:
    """A run of one group per update whose reward rises.

    Args:
        change: writes more episodes.
    """
    directory.mkdir(parents=True)
    draw = random.Random(0)
    metrics, updates = [], []
    with Journal(directory / "journal") as journal:
        for group in range(groups):
            rewards = []
            for sample in range(GROUP):
                solved = float(draw.random() < (group + 1) / groups)
                number = 100 * group + sample
                turns = bash((f"python3 -c 'print({number})'", f"{number}\n"))
                done = rollout(f"train-{group:06d}-{sample:04d}", turns, str(number), solved, f"task-{group}")
                write_episode(journal, done, group)
                rewards.append(solved)
            mean = sum(rewards) / GROUP
            metrics.append(_step(group, mean))
            updates.append(_update(group, rewards, mean))
        journal.ended(_odd(), phase="train", step=groups - 1)
        change(journal)
    _lines(directory / "metrics.jsonl", metrics)
    history = [{"event": "started", "step": 0, "time": START}]
    if finished:
        history.append({"event": "finished", "step": groups, "time": START + groups})
    _lines(directory / "history.jsonl", history)
    if ledger:
        _lines(directory / "ledger.jsonl", [{"ledger": 1}, *updates])
    (directory / "recipe.yaml").write_text("name: made\nmodel: {path: tiny}\ngrpo: {max_steps: 6}\n")
    export = directory / "export"
    export.mkdir()
    words = ["<|end|>", "<|user|>", "<|im_end|>", "think", " of", " it", "seen", " that", "done", "ask"]
    made = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="think"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|end|>", "<|user|>", "<|im_end|>"])
    made.save(str(export / "tokenizer.json"))
    return directory


def _odd() -> Rollout:
    """An episode with a call that cannot be read, and a fault."""
    turn = Turn(Action((3,), (-3.0,), "length", 1), (MalformedCall("no JSON"),), (Observation("no JSON"),))
    return rollout("train-000099-0000", (turn,), "", None, "task-odd", detail="a fault")


def _step(step: int, reward: float) -> dict[str, float]:
    return {
        "step": step + 1,
        "time": START + step,
        "loss": 0.1,
        "reward": reward,
        "reward/mean": reward,
        "solve_rate": reward,
        "grad_norm": 1.0,
        "turns": 2.0,
        "tokens/sampled": 6.0,
        "zero_variance_groups": 0.0,
        "step_time": 1.0,
    }


def _update(group: int, rewards: Sequence[float], mean: float) -> dict[str, object]:
    equal = len(set(rewards)) == 1
    samples = [
        {
            "episode": f"train-{group:06d}-{sample:04d}",
            "end": "equal_rewards" if equal else "used",
            "advantage": reward - mean,
        }
        for sample, reward in enumerate(rewards)
    ]
    about = {"number": group, "task": f"task-{group}", "refill": None, "samples": samples}
    return {"update": group + 1, "time": START + group, "groups": [about]}


def _lines(path: Path, values: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
