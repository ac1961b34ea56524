"""Where an installed package keeps its files. Nothing is imported: its code may want what is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sandbox_rl.errors import DataError

__all__ = ["package_folder"]


def package_folder(module: str, install: str) -> Path:
    """The folder of an importable package.

    Args:
        install: what to give to pip.

    Raises:
        DataError: it is not installed.
    """
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"package {module!r} is not installed; pip install {install}")
    return Path(next(iter(spec.submodule_search_locations)))
