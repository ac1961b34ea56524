"""Checkpoints that are whole, whenever a run is killed.

A save writes into `.saving/`; then every file and directory is flushed to the disk, the manifest
`complete.json` is written with the size and the SHA-256 of each file, and one rename puts the checkpoint
among the others. A kill at any instant leaves the checkpoints that were there, and perhaps `.saving/`, which
the next save removes. A checkpoint that is pruned is renamed first, so none is ever seen half removed.

Sizes are compared wherever checkpoints are listed; hashes, which cost a reading of all files, once, before a
run goes on from one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sandbox_rl.errors import ConfigError
from sandbox_rl.outputs import write_atomically

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"
SAVING = ".saving"
"""Where a save writes, beside the checkpoints."""
_PRUNED = ".pruned-"
_READERS = min(8, os.cpu_count() or 1)


def publish(saved: Path, place: Path) -> None:
    """Make a checkpoint that was written to `saved` the one at `place`, on the disk; see `mark_complete`.

    Raises:
        OSError: it could not be written. Nothing at `place` has changed, or all of it is there.
    """
    mark_complete(saved)
    if place.exists():  # no complete one: a save of the same step would not have begun
        _remove(place)
    os.rename(saved, place)
    _flush_directory(place.parent)


def mark_complete(checkpoint: Path) -> None:
    """Flush the files of a checkpoint to the disk, and then its manifest."""
    paths = [p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != MANIFEST]
    names = [str(path.relative_to(checkpoint)) for path in paths]
    with ThreadPoolExecutor(_READERS) as pool:  # hashing leaves the interpreter's lock
        found = dict(zip(names, pool.map(_flushed, paths), strict=True))
    for directory in (p for p in checkpoint.rglob("*") if p.is_dir()):
        _flush_directory(directory)
    write_atomically(checkpoint / MANIFEST, json.dumps({"files": found}))
    _flush_directory(checkpoint)


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by the content of all of its files: one of them and why, or None."""
    files = _manifest(checkpoint)
    if files is None:
        return f"{MANIFEST} is missing or cannot be read"
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: _difference(checkpoint / name, files[name], content=True), files)
        return next((f"{name} {why}" for name, why in zip(files, found, strict=True) if why), None)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the manifest lists is there with its size."""
    files = _manifest(checkpoint)
    return files is not None and not any(
        _difference(checkpoint / name, entry, content=False) for name, entry in files.items()
    )


def step_of(checkpoint: Path) -> int:
    """The updates that a checkpoint's weights have received, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(directory: Path) -> list[Path]:
    """All complete checkpoints, in no order."""
    return [path for path in _checkpoints(directory) if is_complete(path)]


def complete_of(directory: Path, step: int, what: str) -> Path:
    """The complete checkpoint of a step.

    Args:
        what: the option that names the step, for the message.

    Raises:
        ConfigError: there is none.
    """
    found = {step_of(path): path for path in complete_checkpoints(directory)}
    if step not in found:
        raise ConfigError(
            f"{what}: {step}, but {directory} has no complete checkpoint of it there, expected one of "
            f"{', '.join(map(str, sorted(found))) or 'none, it has no checkpoints'}"
        )
    return found[step]


def division_of_checkpoint(checkpoint: Path) -> tuple[str | None, int | None]:
    """How the processes that saved a checkpoint divided the model, and into how many parts of the optimizer.

    Returns:
        `FSDP` or `DEEPSPEED`, None where each held all of it; of DeepSpeed the number of its processes, which
        have to be as many again.
    """
    found = {path.name for path in checkpoint.iterdir()} if checkpoint.is_dir() else set()
    if any(name.startswith("pytorch_model_fsdp") for name in found):
        return "FSDP", None
    if any(re.fullmatch(r"global_step\d+", name) for name in found):
        return "DEEPSPEED", len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))) or None
    return None, None


def last_complete(directory: Path) -> Path | None:
    """The complete checkpoint of the highest step, if any."""
    return max(complete_checkpoints(directory), key=step_of, default=None)


def last_intact(directory: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint whose files have the content that was saved; what is wrong with newer ones."""
    damaged: dict[Path, str] = {}
    for checkpoint in sorted(_checkpoints(directory), key=step_of, reverse=True):
        if (damage := damage_of(checkpoint)) is None:
            return checkpoint, damaged
        damaged[checkpoint] = damage
    return None, damaged


def prune(directory: Path, keep: int | None) -> None:
    """Remove all complete checkpoints but the newest `keep`, which is at least 1; None keeps all."""
    complete = sorted(complete_checkpoints(directory), key=step_of)
    for checkpoint in complete[: -keep or None] if keep else []:
        try:
            _remove(checkpoint)
        except OSError as error:  # the new one is safe; the next save tries again
            logger.warning("%s: an old checkpoint cannot be removed: %s", checkpoint, error)


def remove_leftovers(directory: Path) -> None:
    """Remove what kills have left of saves and of prunings."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name == SAVING or path.name.startswith(_PRUNED):
            delete(path)


def _remove(checkpoint: Path) -> None:
    """Whole or, as others see it, not at all."""
    gone = checkpoint.with_name(_PRUNED + checkpoint.name)
    delete(gone)
    os.rename(checkpoint, gone)
    delete(gone)


def delete(directory: Path) -> None:
    """Remove a directory, as much of it as can be removed."""
    shutil.rmtree(directory, ignore_errors=True)


def _manifest(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) and files else None


def _difference(path: Path, entry: Any, *, content: bool) -> str | None:
    """How a file differs from its entry in the manifest; None where it does not."""
    try:
        size, expected = entry["size"], entry["sha256"]
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes, expected {size}"
        return "differs from its SHA-256" if content and _sha256(path) != expected else None
    except (KeyError, TypeError):
        return f"has no size and SHA-256 in {MANIFEST}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _flushed(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        return {"size": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_directory(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _checkpoints(directory: Path) -> list[Path]:
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in paths if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
