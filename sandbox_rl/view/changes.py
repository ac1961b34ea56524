"""What each turn of an episode changed in its sandbox, where a replay has written that into the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from sandbox_rl.view.lines import json_file

__all__ = ["changes_of", "file_of"]


def file_of(run: Path, episode: str) -> Path:
    """Where the changes of an episode lie, if anybody has asked for them."""
    return run / "files" / f"{quote(episode, safe='')}.json"


def changes_of(run: Path, episode: str) -> list[Any]:
    """Of each turn its changes, each with `path`, `what`, `bytes` and `diff`; empty where none are known."""
    turns = json_file(file_of(run, episode)).get("turns")
    return turns if isinstance(turns, list) else []
