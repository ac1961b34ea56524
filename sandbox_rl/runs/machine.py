"""What a run ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import sandbox_rl
from sandbox_rl.sandboxes.base import SandboxInfo

__all__ = ["machine_facts"]

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "vllm", "docker", "reasoning-gym")


def machine_facts(sandbox: SandboxInfo) -> dict[str, Any]:
    """Versions, devices and the sandbox, as JSON values."""
    versions: dict[str, str] = {"sandbox_rl": sandbox_rl.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "sandbox": asdict(sandbox),
    }
