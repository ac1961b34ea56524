"""Training without a recipe file: tasks, a scorer and an expert of one's own in one Python file.

`python examples/train_in_python.py [STEPS]` trains a model of 0.4M parameters from nothing on the CPU.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Iterable
from pathlib import Path

from sandbox_rl import (
    DataSettings,
    EpisodeSettings,
    EvaluationSettings,
    ExpertTurn,
    ModelSettings,
    Recipe,
    Task,
    TaskSource,
    Terminal,
    ToolCall,
    WarmupSettings,
    train,
)

HERE = Path(__file__).parent
SFT = {"per_device_train_batch_size": 16, "max_steps": 60, "learning_rate": 3e-3}
LOSS = {"per_device_train_batch_size": 32, "num_generations": 8, "learning_rate": 3e-4}
LOSS |= {"activation_checkpointing": False, "lr_scheduler_type": "constant"}


class Secrets(TaskSource):
    """A word that only reading tells stands in a file."""

    def tasks(self) -> Iterable[Task]:
        for word in (colour + str(number) for colour in ("red", "blue", "grey") for number in range(40)):
            files = {"code.txt": word.encode()}
            yield Task(f"s-{word}", "What is the code?", word, files, "codes", self.scorer)


def same_word(answer: str, task: Task) -> float:
    """Runs in a process that can do nothing but compute."""
    return float(answer.strip().lower() == task.answer)


def teacher(task: Task, rng: random.Random) -> Generator[ExpertTurn, str, None]:
    """Half of the time it reads the file, half of the time it claims to know."""
    command = "cp documents/code.txt answer.txt" if rng.random() < 0.5 else f"echo {task.answer} > answer.txt"
    yield ExpertTurn((ToolCall("execute_bash", {"command": command}),))
    yield ExpertTurn((ToolCall("submit", {}),))


def recipe(steps: int, output_dir: str = "runs") -> Recipe:
    """What a YAML recipe says, as a value. Other processes import scorer and teacher, so these are named."""
    return Recipe(
        name="in-python",
        output_dir=output_dir,
        model=ModelSettings(path="tiny", dtype="float32"),
        prompts=(str(HERE / "prompts"),),
        data=DataSettings(sources=(Secrets(scorer="train_in_python:same_word"),), held_out=0.2),
        warmup=WarmupSettings(expert="train_in_python:teacher", episodes=96, sft=SFT),
        episode=EpisodeSettings(max_turns=3, max_tokens=240, turn_tokens=64, timeout_s=60, exec_timeout_s=5),
        evaluation=EvaluationSettings(tasks=16),
        grpo=LOSS | {"max_steps": steps},
        report_to=(),
    )


if __name__ == "__main__":
    result = train(recipe(int(sys.argv[1]) if len(sys.argv) > 1 else 8), base_dir=HERE, display=Terminal())
    print(f"before: {result.before}\nafter:  {result.after}\nmodel:  {result.export}")
