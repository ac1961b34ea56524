"""What the scripts for GPUs share."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from sandbox_rl.outputs import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1


def start(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a command of this checkout in a process group of its own; it dies with this process.

    The caller ends it by `stop`.
    """
    # As the command line does, whose processes share the cores with servers and sandboxes.
    passive = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=os.environ | passive | {"PYTHONPATH": paths},
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the command's process group, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def earlier(report: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier call of the same settings has reported, to go on with; None, and said, if of others."""
    content: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    for name, value in settings.items():
        if (before := content.get(name, value)) != value:
            print(f"{report} is of another {name} ({before}, now {value}); give another --out")
            return None
    return content


def save(report: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, at whatever instant this process is killed."""
    write_atomically(report, json.dumps(content, indent=1) + "\n")


def scale_of(wanted: str | None) -> str:
    """ "full" where there is a GPU and nothing else is asked for, else "tiny"."""
    return wanted or ("full" if torch.cuda.is_available() else "tiny")


def device_name() -> str:
    """Of the GPU, or that there is none."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU, {os.cpu_count()} cores"
