"""A run as one file: what it was, what it did and what it was scored by, for another machine or another day.

A zip of the run's records, of the tasks that its episodes are of, and of a manifest with the size and the
SHA-256 of each. Checkpoints, exports and the files of tasks stay where they are; a task's line has the
digests of its files.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox_rl.cassette import Cassette
from sandbox_rl.outputs import check_new, new_files
from sandbox_rl.replay.recorded_run import RecordedRun
from sandbox_rl.types import Task

FORMAT = 1
MANIFEST = "manifest.json"
TASKS = "tasks.jsonl"
SCORING = "scoring.json"
"""How the run was scored: its recipe's blocks `reward` and `rollout`."""

MEMBERS = re.compile(
    r"(recipe\.yaml|(machine|results|tasks)\.json|(history|metrics|ledger|compositions|alarms)\.jsonl"
    r"|journal/\d{4,6}-\d{4,6}\.(jsonl|tokens)|replaced/[a-z]+-\d{1,6}\.jsonl|tasks\.jsonl|scoring\.json)"
)
"""What a bundle may hold beside its manifest: nothing else is packed, and nothing else is taken out."""
TEXTS = ("id", "prompt", "answer", "domain", "scorer")
"""Of a task's line."""
_PIECE = 1 << 20


def bundle(path: Path, output: Path | None = None) -> Path:
    """Pack a run; one that goes on is packed as far as it has come.

    Args:
        output: must not exist; by default `<run>.bundle.zip` beside the run's directory.

    Raises:
        ConfigError: no such run, or `output` exists.
        DataError: it has no journal, or its tasks are not there any more.
    """
    run = RecordedRun.open(path)
    target = output or path.resolve().parent / f"{path.resolve().name}.bundle.zip"
    check_new(target, "--output")
    with Cassette(path) as cassette:
        tasks = run.tasks(set(cassette.tasks.values()))
    made = {
        TASKS: "".join(_line_of_task(task) for _, task in sorted(tasks.items())),
        SCORING: json.dumps(
            {block: run.recipe.model_dump(mode="json")[block] for block in ("reward", "rollout")}
        ),
    }
    with new_files(target.parent, [target.name], "--output") as partial:
        with zipfile.ZipFile(partial / target.name, "x", zipfile.ZIP_DEFLATED) as archive:
            files = {name: _add(archive, name, path / name) for name in _records(path)}
            for name, text in made.items():
                files[name] = _add_text(archive, name, text)
            archive.writestr(MANIFEST, json.dumps(_manifest(run, files), indent=1))
    return target


def _records(run: Path) -> Iterator[str]:
    """Names of the run's files that are packed; the journal last, so that it has what the ledger has."""
    names = {file.relative_to(run).as_posix(): file for file in run.rglob("*")}
    for name in sorted(names, key=lambda name: (name.startswith("journal/"), name)):
        if MEMBERS.fullmatch(name) and names[name].is_file() and not names[name].is_symlink():
            yield name


def _manifest(run: RecordedRun, files: dict[str, Any]) -> dict[str, Any]:
    machine = run.run.path / "machine.json"
    versions = json.loads(machine.read_text()).get("versions", {}) if machine.is_file() else {}
    return {
        "bundle": FORMAT,
        "run": run.run.path.resolve().name,
        "created": round(time.time(), 3),
        "versions": versions,
        "data": [_source(source) for source in run.recipe.data.sources],
        "files": files,
    }


def _source(source: Any) -> dict[str, Any]:
    """What a source of tasks is, with the digest of its file if it is one."""
    told = {"type": source.type, "label": source.label}
    path = Path(getattr(source, "path", "") or "")
    if path.is_file():
        with path.open("rb") as file:
            told["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return told


def _line_of_task(task: Task) -> str:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in task.files.items()}
    told: dict[str, Any] = {name: getattr(task, name) for name in TEXTS}
    told |= {"metadata": dict(task.metadata), "files": files}
    return json.dumps(told, default=str) + "\n"


def task_of_line(line: bytes) -> Task:
    """The task without its files.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: no such line.
    """
    told = json.loads(line)
    texts = {name: told[name] for name in TEXTS}
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(told["metadata"], dict):
        raise TypeError("not a task")
    return Task(**texts, metadata=told["metadata"])


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    """Pack a file as long as it is now, though a run may go on with it."""
    left = path.stat().st_size
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file, archive.open(name, "w", force_zip64=True) as member:
        while left and (piece := file.read(min(left, _PIECE))):
            member.write(piece)
            digest.update(piece)
            size += len(piece)
            left -= len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _add_text(archive: zipfile.ZipFile, name: str, text: str) -> dict[str, Any]:
    content = text.encode()
    archive.writestr(name, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
