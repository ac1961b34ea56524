"""Whether a bundle is what was packed, and what its scores come to on this machine.

A bundle may come from anyone. It is read as data only: nothing in it names what is imported, run, asked over
a network or written outside a directory of our own. So answers are scored by scorers of this package alone,
in sandboxes; those of scorers of one's own, and of a judge, are counted and left.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sandbox_rl.builders import scoring_place
from sandbox_rl.cassette import Cassette
from sandbox_rl.config.load import parse_yaml
from sandbox_rl.errors import DataError
from sandbox_rl.journal.audit import first_damage
from sandbox_rl.outputs import check_format
from sandbox_rl.replay.bundle import FORMAT, MANIFEST, MEMBERS, SCORING, TASKS, task_of_line
from sandbox_rl.replay.rescoring import Rescored, score_all
from sandbox_rl.rewards.base import BUILT_IN
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.rollout.settings import RolloutSettings
from sandbox_rl.runs.check import CheckedRun, check_run
from sandbox_rl.types import Task

MOST_MEMBERS = 100_000
MOST_MANIFEST = 64 << 20
"""Bytes of a manifest."""
MOST_RECIPE = 4 << 20
SCHEDULE = ("name", "mode", "seed", "estimator", "grpo", "curriculum", "rollout")
"""Blocks of a recipe that decide which sample is trained when."""
SMALL = 64 << 20
MOST_GROWTH = 200
"""A bundle may unpack to as many bytes as it has times this, and `SMALL` more: text that is packed becomes a
tenth, or a hundredth where it repeats itself."""
_PIECE = 1 << 20
_NO_BUNDLE = (
    *(zipfile.BadZipFile, zlib.error, sqlite3.Error, yaml.YAMLError, NotImplementedError, RuntimeError),
    *(ValueError, KeyError, TypeError, AttributeError, EOFError, OverflowError, MemoryError),
)
"""What reading something else than a bundle raises."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What is in order.

    Args:
        files: whose size and digest are those of the manifest.
        wrong: what is not, one line each.
        damaged: what was not as the run had written it when it was packed; nothing is scored then.
        ledger: what `sandbox-rl check` says of the records; None where no update had finished.
        scored: episodes that were scored again, with both rewards.
        left: episodes that are scored by what a bundle must not name.
    """

    files: int
    wrong: tuple[str, ...] = ()
    damaged: str | None = None
    ledger: CheckedRun | None = None
    scored: tuple[Rescored, ...] = ()
    left: int = 0

    @property
    def other(self) -> list[Rescored]:
        """Episodes whose reward came out another way, though both could be judged."""
        both = [e for e in self.scored if e.reward is not None and e.new_reward is not None]
        return [e for e in both if e.reward != e.new_reward]

    @property
    def not_judged(self) -> int:
        """Episodes that had a reward and could not be judged now: a failure on this side."""
        return sum(e.reward is not None and e.new_reward is None for e in self.scored)


def verify(path: Path) -> Verified:
    """Check every digest, read the ledger, and score every answer again. Leaves nothing behind.

    Raises:
        DataError: no bundle, one of a newer version, or one that is not made as bundles are (paths that lead
            elsewhere, links, names twice, more than it can hold).
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-rl-verify-") as scratch:
        root = Path(scratch)
        try:
            files, wrong = _unpacked(path, root)
            if wrong:
                return Verified(files, tuple(wrong))
            if (damaged := _damaged(root)) is not None:
                return Verified(files, damaged=damaged)
            scored, left = _scored(root)
            ledger = _checked(root)
        except _NO_BUNDLE as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"{path}: it is damaged, or no bundle ({type(error).__name__}: {why}), expected what "
                "`sandbox-rl bundle` made"
            ) from error
        return Verified(files, ledger=ledger, scored=tuple(scored), left=left)


def _unpacked(path: Path, root: Path) -> tuple[int, list[str]]:
    """Write the members below `root`; how many are as the manifest says, and what is not.

    Raises:
        DataError: see `verify`.
    """
    if not path.is_file():  # a pipe would keep us waiting
        what = "no file" if path.exists() else "No such file or directory"
        raise DataError(f"{path}: {what}, expected a bundle; name one")
    try:
        size = path.stat().st_size
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}, expected a bundle; name one") from error
    with archive:
        members = _members(path, archive, size)
        manifest = _manifest(path, archive, members.pop(MANIFEST, None))
        files: Mapping[str, Any] = manifest["files"]
        wrong = [f"{name}: in the manifest, not in the bundle" for name in files.keys() - members.keys()]
        wrong += [f"{name}: in the bundle, not in the manifest" for name in members.keys() - files.keys()]
        if sum(int(told["bytes"]) for told in files.values()) > shutil.disk_usage(root).free:
            raise DataError(f"{path}: it unpacks to more than {root.parent} has space for; free some")
        good = 0
        for name in sorted(files.keys() & members.keys()):
            problem = _unpack(archive, members[name], root / name, files[name])
            good += not problem
            wrong += [f"{name}: {problem}"] if problem else []
    return good, sorted(wrong)


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name, all of which may be there.

    Raises:
        DataError: one of them may not.
    """
    infos = archive.infolist()
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        name = info.orig_filename
        if name != info.filename or (name != MANIFEST and not MEMBERS.fullmatch(name)):
            raise DataError(f"{path}: member {name!r}, expected records of a run only; do not unpack it")
        if kind not in (0, stat.S_IFREG) or info.flag_bits & 0x1:
            raise DataError(f"{path}: member {name!r} is a link or encrypted, expected plain files only")
        if info.filename in found:
            raise DataError(f"{path}: member {info.filename!r} is there twice, expected each once")
        found[info.filename] = info
    unpacked, packed = sum(i.file_size for i in infos), sum(i.compress_size for i in infos)
    if len(infos) > MOST_MEMBERS or packed > size or unpacked > SMALL + MOST_GROWTH * size:
        raise DataError(
            f"{path}: {len(infos)} members of {unpacked} bytes in a file of {size}, expected at most "
            f"{MOST_GROWTH} times as much and none lying over another; it is made to fill a disk"
        )
    return found


def _manifest(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> dict[str, Any]:
    if info is None or info.file_size > MOST_MANIFEST:
        raise DataError(f"{path}: no {MANIFEST} in it, expected what `sandbox-rl bundle` made")
    with archive.open(info) as file:
        manifest: dict[str, Any] = json.loads(file.read(info.file_size + 1))
    check_format(path, int(manifest["bundle"]), FORMAT)
    if missing := {SCORING, TASKS} - manifest["files"].keys():
        raise DataError(f"{path}: it has no {min(missing)}, expected what `sandbox-rl bundle` made")
    return manifest


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, told: Mapping[str, Any]) -> str:
    """Write one member; what is wrong with it, or ""."""
    target.parent.mkdir(exist_ok=True)
    digest, size, most = hashlib.sha256(), 0, int(told["bytes"])
    try:
        with archive.open(info) as member, target.open("xb") as file:
            while piece := member.read(_PIECE):
                size += len(piece)
                if size > most:
                    return f"more than the {most} bytes of the manifest"
                digest.update(piece)
                file.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        return f"it cannot be unpacked ({error})"
    if size != most or digest.hexdigest() != told["sha256"]:
        return f"{size} bytes with SHA-256 {digest.hexdigest()}, expected {most} with {told['sha256']}"
    return ""


def _damaged(root: Path) -> str | None:
    """What of the journal is not what the run has written."""
    try:
        found = first_damage(root / "journal")
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from error
    return None if found is None else f"journal: {found}"


def _scored(root: Path) -> tuple[list[Rescored], int]:
    """Every episode whose scorer is ours, scored again; and how many are not."""
    told = json.loads((root / SCORING).read_bytes())
    reward, settings = RewardSettings(**told["reward"]), RolloutSettings(**told["rollout"])
    with (root / TASKS).open("rb") as lines:
        tasks = {task.id: task for task in map(task_of_line, lines)}
    with Cassette(root) as cassette:
        ids = [id for id, phase in cassette.phases.items() if phase != "cancelled"]
        ours = [id for id in ids if _is_ours(reward, tasks[cassette.tasks[id]])]
        if not ours:
            return [], len(ids)
        return asyncio.run(_score(reward, settings, cassette, ours, tasks)), len(ids) - len(ours)


def _checked(root: Path) -> CheckedRun | None:
    """The ledger held against the journal, by those parts of the recipe that say when what is trained.

    What else it names (modules, sandboxes, sources, scorers) is left out before it is read as a recipe.
    """
    recipe = root / "recipe.yaml"
    if not (root / "ledger.jsonl").exists():
        return None
    if recipe.stat().st_size > MOST_RECIPE:
        raise ValueError(f"a recipe of {recipe.stat().st_size} bytes")
    told = parse_yaml(recipe.read_text(encoding="utf-8"))
    plain = {block: told[block] for block in SCHEDULE if block in told}
    plain["modules"] = []
    plain["data"] = {"sources": [{"type": "table", "path": "none"}]}
    if plain.get("mode") == "async":
        plain["policy"] = {"type": "vllm"}
    recipe.write_text(json.dumps(plain), encoding="utf-8")  # JSON is YAML
    return check_run(root)


def _is_ours(reward: RewardSettings, task: Task) -> bool:
    names = [reward.scorer] if reward.scorer is not None else list(reward.composite) or [task.scorer]
    return all(name in BUILT_IN for name in names)


async def _score(
    reward: RewardSettings,
    settings: RolloutSettings,
    cassette: Cassette,
    ids: list[str],
    tasks: Mapping[str, Task],
) -> list[Rescored]:
    """With this machine's isolation and bounds; of the bundle's settings only which scorers there are."""
    safe = RewardSettings(scorer=reward.scorer, composite=reward.composite)
    used = sorted({task.scorer for task in tasks.values() if task.scorer in BUILT_IN})
    async with ScoringPool(scoring_place(safe), safe, expected=used) as scoring:
        return await score_all(scoring, settings, cassette, ids, tasks)
