"""The gold answers and questions of a run's tasks, which its journal does not hold.

They are made again from the recipe that lies in the run, by a process of its own (`python -m
sandbox_rl.view.golds RUN`), since that loads whatever the sources of the tasks need.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

MOST = 200_000
"""Tasks whose answers are kept."""
CHARS = 400
"""Of what a failure says."""


class Golds:
    """What is known so far; filled in the background from the first question on.

    Args:
        run: directory with a `recipe.yaml`.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._answers: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        recipe = run / "recipe.yaml"
        self.failure = ""
        """Why gold answers are not known, as a sentence; empty where they are, or may still come."""
        self.done = False
        """Whether no more will come."""
        if not recipe.exists():
            self.done = True
        elif recipe.stat().st_uid != os.geteuid():
            self.done = True
            self.failure = (
                "The run's recipe belongs to another user, and a recipe can name code: not run for you."
            )

    def start(self) -> None:
        """Begin, unless it has begun already."""
        if self._process is None and not self.done:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sandbox_rl.view.golds", str(self._run)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._reading = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reading.start()

    def close(self) -> None:
        """End what still runs."""
        if self._process is not None:
            self._process.kill()
            self._reading.join()

    def answer(self, task_id: str | None) -> str:
        """The gold answer of a task; empty where it is not known."""
        return self._answers.get(task_id or "", "")

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        errors: deque[bytes] = deque(maxlen=1)
        with process.stdout as lines, process.stderr as said:
            draining = threading.Thread(target=errors.extend, args=(said,), daemon=True)
            draining.start()
            for line in lines:
                if line.endswith(b"\n"):
                    id, answer = json.loads(line)
                    self._answers[id] = answer
            draining.join()
        if process.wait() != 0:
            last = errors[-1].decode(errors="replace") if errors else f"exit code {process.returncode}"
            last = re.sub(r"^[\w.]+: ", "", last.strip())[:CHARS]  # without the name of the exception
            self.failure = f"The run's tasks cannot be loaded again: {last}"
        self.done = True


def _main(run: Path) -> None:
    from itertools import chain, islice

    from sandbox_rl.config.load import load_recipe
    from sandbox_rl.tasks.load import load_tasks

    recipe = load_recipe(run / "recipe.yaml", ())
    splits = (load_tasks(recipe.data, split=split, base_dir=run) for split in ("train", "held_out"))
    for task in islice(chain.from_iterable(splits), MOST):
        print(json.dumps([task.id, task.answer]))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
