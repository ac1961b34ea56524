"""A clean Python environment to show in sandboxes: chosen packages, and nothing of the trainer's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from sandbox_rl.errors import ConfigError, SetupError
from sandbox_rl.sandboxes.bwrap import ANSWER_KEYS

_MADE_OF = "made-of.txt"


def make_python_env(directory: Path, requirements: Path) -> bool:
    """Make a virtual environment with what a requirements file names; pip's own settings say from where.

    Returns whether it was made; False if it was there already, of the same requirements and interpreter.

    Raises:
        ConfigError: the file is missing or names what makes or scores tasks, or the directory is in use.
        SetupError: venv or pip failed.
    """
    if not requirements.is_file():
        raise ConfigError(f"--requirements {requirements}: no such file; expected one as pip reads it")
    text = requirements.read_text(encoding="utf-8")
    for name in ANSWER_KEYS:
        if name.replace("_", "-") in text.lower().replace("_", "-"):
            raise ConfigError(f"--requirements {requirements}: {name} knows gold answers; leave it out")
    made_of = hashlib.sha256(f"{sys.version}\n{text}".encode()).hexdigest()
    mark = directory / _MADE_OF
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() == made_of:
        return False
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory}: holds something else; give a new or empty directory")
    _run([sys.executable, "-m", "venv", str(directory)], "venv")
    pip = [str(directory / "bin" / "python3"), "-m", "pip", "--disable-pip-version-check", "install"]
    _run([*pip, "-q", "-r", str(requirements)], "pip")
    mark.write_text(made_of + "\n", encoding="utf-8")
    return True


def _run(command: list[str], what: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip() or ran.stdout.strip() or "no output").splitlines()[-1]
        raise SetupError(
            f"sandbox.python_env: {what} failed: {last}; correct that, remove the directory, try again"
        )
