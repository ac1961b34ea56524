"""Which checkpoints are whole. A kill can cut a save anywhere; what it leaves must not be loaded.

After everything of a checkpoint is written, `complete.json` is, atomically, with the size of every
file. Resuming takes the newest checkpoint whose files all have those sizes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState

from sandbox_rl.training.agreement import together

__all__ = [
    "CheckpointManifest",
    "complete_checkpoints",
    "is_complete",
    "last_complete",
    "step_of",
    "torn_checkpoints",
]

MANIFEST = "complete.json"


class CheckpointManifest(TrainerCallback):  # type: ignore[misc]
    """Marks each saved checkpoint as complete.

    Args:
        save_more: each writes what else belongs into a checkpoint's directory, on the main process.
    """

    def __init__(self, *save_more: Callable[[Path], None]) -> None:
        self._save_more = save_more

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the manifest once all ranks have written theirs."""
        PartialState().wait_for_everyone()
        with together():
            if state.is_world_process_zero:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                for save in self._save_more:
                    save(checkpoint)
                mark_complete(checkpoint)


def mark_complete(checkpoint: Path) -> None:
    """Flush the files of a checkpoint to the disk and write its manifest."""
    sizes: dict[str, int] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
    temporary = checkpoint / f".{MANIFEST}.tmp"
    with temporary.open("w") as file:
        json.dump({"files": sizes}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, checkpoint / MANIFEST)
    directory = os.open(checkpoint, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the manifest lists is there with its size."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text())["files"]
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    """The updates that a checkpoint's weights have received, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(directory: Path) -> list[Path]:
    """All complete checkpoints, in no order."""
    return [path for path in _checkpoints(directory) if is_complete(path)]


def last_complete(directory: Path) -> Path | None:
    """The complete checkpoint of the highest step, if any."""
    return max(complete_checkpoints(directory), key=step_of, default=None)


def torn_checkpoints(directory: Path) -> list[Path]:
    """What kills have left of saves; the trainer would count it among the checkpoints that it keeps."""
    return [path for path in _checkpoints(directory) if not is_complete(path)]


def _checkpoints(directory: Path) -> list[Path]:
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in paths if re.fullmatch(r"checkpoint-\d+", path.name)]
