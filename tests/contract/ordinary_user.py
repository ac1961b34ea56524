"""Running a script of ours as an ordinary user, on a copy of the package that everyone may read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sandbox_rl

__all__ = ["USER", "run_as_ordinary_user"]

USER = 54_321  # nobody's


def run_as_ordinary_user(script: str, *, before: Sequence[str] = (), **files: str) -> dict[str, Any]:
    """What the script prints, as JSON.

    Args:
        before: a command that runs the rest of its arguments as that user, instead of us.
        files: names and contents of further modules beside it.
    """
    if os.geteuid() != 0:
        pytest.skip("the whole suite already runs as an ordinary user")
    who: dict[str, Any] = {} if before else {"user": USER, "group": USER, "extra_groups": []}
    directory = Path(tempfile.mkdtemp(prefix="ordinary-user-"))
    try:
        directory.chmod(0o755)
        shutil.copytree(Path(sandbox_rl.__file__).parent, directory / "sandbox_rl")
        (directory / "script.py").write_text(script)
        for name, text in files.items():
            (directory / f"{name}.py").write_text(text)
        paths = f"{directory}:{sysconfig.get_path('purelib')}"
        for interpreter in (sys.executable, "/usr/bin/python3"):
            try:
                tried = subprocess.run(
                    [*before, interpreter, "-S", "-B", str(directory / "script.py")],
                    env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "HOME": "/"},
                    cwd="/",
                    capture_output=True,
                    timeout=250,
                    check=False,
                    **who,
                )
            except PermissionError:
                continue  # this interpreter lies where only root can go
            if tried.returncode == 126:
                continue  # the same, as `before` says it
            assert tried.returncode == 0, tried.stderr.decode()
            return dict(json.loads(tried.stdout))
        pytest.skip("no interpreter here that an ordinary user can run")
    finally:
        shutil.rmtree(directory)
