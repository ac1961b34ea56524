"""What this machine has and lacks for training: each finding with what the lack costs and what fixes it.

Nothing heavy is imported: versions are those that are installed, by their own metadata.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from sandbox_rl.errors import SandboxRLError
from sandbox_rl.sandboxes.embedded import EmbeddedBackend

State = Literal["ok", "note", "lack"]
DISK_GB, SHARED_GB, OPEN_FILES = 20.0, 1.0, 4_096
"""What a run of a small model wants."""
OPTIONAL = {
    "vllm": (
        "sampling is slow: episodes are sampled in the trainer's process",
        "pip install 'sandbox-rl[vllm]'",
    ),
    "bitsandbytes": ("no 8-bit optimizers and no 4-bit models", "pip install 'sandbox-rl[qlora]'"),
    "docker": ("no sandboxes in containers", "pip install 'sandbox-rl[docker]'"),
    "ray": ("no sandboxes on other machines of a cluster", "pip install 'sandbox-rl[ray]'"),
    "wandb": ("no `report_to: [wandb]`", "pip install 'sandbox-rl[wandb]'"),
    "trackio": ("no `report_to: [trackio]`", "pip install 'sandbox-rl[trackio]'"),
    "prometheus-client": ("no `metrics.prometheus`", "pip install 'sandbox-rl[prometheus]'"),
    "inspect-ai": ("no `export-episodes --format inspect`", "pip install 'sandbox-rl[inspect]'"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: `ok`; `note` where something that not everybody needs is missing; `lack` where training fails.
        found: what is there.
        cost: what does not work without it.
        fix: a command or a step.
    """

    name: str
    state: State
    found: str
    cost: str = ""
    fix: str = ""


async def examine(place: Path) -> list[Finding]:
    """Look at everything.

    Args:
        place: where runs are to be written.
    """
    python = Finding("python", "ok", platform.python_version())  # an older one cannot install the package
    found = [python, *_packages(), await asyncio.to_thread(_gpu)]
    found += [await _sandboxes(), _containers(), *_limits(place), _ports()]
    return found


def judge_package(requirement: Requirement, installed: str | None) -> Finding:
    """Whether an installed version is one that this version of sandbox_rl was made for."""
    name, wanted = requirement.name, str(requirement.specifier) or "any version"
    cost, fix = OPTIONAL.get(name, ("training does not start", f"pip install '{requirement}'"))
    if installed is None:
        return Finding(name, "note" if name in OPTIONAL else "lack", "not installed", cost, fix)
    if requirement.specifier.contains(installed, prereleases=True):
        return Finding(name, "ok", f"{installed} ({wanted})")
    plain = f"pip install '{name}{requirement.specifier}'"
    return Finding(
        name, "lack", f"{installed}, expected {wanted}", "untested together; may fail anywhere", plain
    )


def _packages() -> Iterator[Finding]:
    for line in requires("sandbox-rl") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and (requirement.name not in OPTIONAL or marker.evaluate({"extra": "dev"})):
            continue
        if requirement.name in (*OPTIONAL, "torch", "trl", "transformers", "accelerate", "peft"):
            try:
                installed: str | None = version(requirement.name)
            except PackageNotFoundError:
                installed = None
            requirement.marker = None
            yield judge_package(requirement, installed)


def _gpu() -> Finding:
    cost, fix = "only small models can be trained, on the processors", "install a driver from NVIDIA"
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("gpu", "note", "none that nvidia-smi knows", cost, fix)
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("gpu", "lack", f"nvidia-smi fails: {error}", cost, "check the driver: run nvidia-smi")
    found = "; ".join(" ".join(line.split()) for line in done.stdout.splitlines())
    if "+cpu" in version("torch"):
        return Finding(
            "gpu", "lack", f"{found}, but torch is the build for CPUs", cost, "pip install torch --upgrade"
        )
    return Finding("gpu", "ok", found)


async def _sandboxes() -> Finding:
    try:
        async with EmbeddedBackend() as backend:
            info = backend.info
    except (SandboxRLError, OSError) as error:
        fix = "see the message, or use `sandbox: {type: docker}`"
        return Finding("sandboxes", "lack", " ".join(str(error).split()), "no sandboxes of our own", fix)
    said = f"{info.tier}, {info.version}"
    if not info.lacks:
        return Finding("sandboxes", "ok", said)
    return Finding("sandboxes", "note", said, " ".join(info.lacks), "sandbox-rl self-check shows what holds")


def _containers() -> Finding:
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    path = Path(host.removeprefix("unix://"))
    if host.startswith("unix://") and not path.exists():
        fix = "install Docker or Podman, or set DOCKER_HOST"
        return Finding("container engine", "note", f"none at {host}", "no `sandbox: {type: docker}`", fix)
    return Finding("container engine", "ok", host)


def _limits(place: Path) -> Iterator[Finding]:
    nearest = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free / 1e9
    fix = "free some, or set output_dir to another disk"
    cost = "checkpoints may not fit: each holds the weights and twice as much for the optimizer"
    yield _enough("disk", free, DISK_GB, f"GB free at {nearest}", cost, fix)
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total / 1e9
        cost = "several GPUs, and vLLM, exchange data there"
        yield _enough("shared memory", shared, SHARED_GB, "GB in /dev/shm", cost, "docker run --shm-size=8g")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cost = "many sandboxes at once run out of descriptors"
    yield _enough(
        "open files", soft, OPEN_FILES, f"of at most {hard}", cost, f"ulimit -n {max(hard, OPEN_FILES)}"
    )


def _enough(name: str, found: float, wanted: float, unit: str, cost: str, fix: str) -> Finding:
    said = f"{found:,.0f} {unit}"
    return Finding(name, "ok", said) if found >= wanted else Finding(name, "note", said, cost, fix)


def _ports() -> Finding:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        cost = "no training on several processes, no page"
        return Finding(
            "loopback", "lack", str(error), cost, "bring the loopback interface up: ip link set lo up"
        )
    return Finding("loopback", "ok", "ports can be taken")
