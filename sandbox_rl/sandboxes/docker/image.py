"""Images of an engine: checked against a digest, and fitted with an interpreter for the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox_rl.errors import SetupError
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.image_python import PLACE, portable_python
from sandbox_rl.sandboxes.docker.options import GROUP, USERS

__all__ = ["check_digest", "checked_image", "fitted_image", "has_python"]

FITTED = "sandbox-rl-fitted"
BASE = "sandbox-rl-base"
TRIAL = "import sys, resource, select; sys.exit(sys.version_info < (3, 9))"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # as engines and as kernels call them


def check_digest(engine: DockerEngine, image: str, wanted: str, *, key: str = "digest") -> str:
    """The id of an image, "" if there is none.

    Raises:
        SetupError: `wanted`, which `key` says, is neither its id nor a repository digest.
    """
    identity, found = engine.image(image)
    if wanted and wanted not in found:
        raise SetupError(
            f"{key}: image {image!r} has {', '.join(sorted(found)) or 'none'}, expected {wanted}; correct "
            "the digest, or fetch the image that has it"
        )
    return identity


def checked_image(engine: DockerEngine, image: str, wanted: str = "") -> str:
    """The image's id, of which containers are made whatever its tag points to later.

    Raises:
        SetupError: it is missing, or another one than was asked for.
    """
    if not check_digest(engine, image, ""):
        raise SetupError(
            f"sandbox.image: the engine has no image {image!r}; build it with `docker build -t {image} "
            f"configs/sandbox`, or fetch it with `docker pull {image}`"
        )
    return check_digest(engine, image, wanted, key="sandbox.digest")


def has_python(engine: DockerEngine, image: str, python: str, host: Mapping[str, Any]) -> bool:
    """Whether the agent's interpreter starts in a container made with these host options."""
    trial = {
        "entrypoint": [python, "-I", "-S", "-B", "-c", TRIAL],
        "command": [],
        "user": f"{USERS[0]}:{GROUP}",
    }
    return engine.exit_code(image, host=host, container=trial) == 0


def fitted_image(engine: DockerEngine, image: str) -> tuple[str, tuple[str, ...]]:
    """(id, command of the interpreter) of an image with this machine's interpreter added.

    It is made once per image and interpreter, and kept on the engine as `sandbox-rl-fitted`.

    Args:
        image: an id.

    Raises:
        SetupError: the image is for another processor, or cannot be built.
    """
    python = portable_python()
    machine = engine.architecture(image)
    if MACHINES.get(machine, machine) != python.machine:
        raise SetupError(
            f"sandbox.image: {image} has no Python 3.9 or newer and is for {machine}, so the one of this "
            f"{python.machine} cannot be put in; use an image with Python"
        )
    short = image.rpartition(":")[2][:24]
    base, tag = f"{BASE}:{short}", f"{FITTED}:{short}-{python.digest[:24]}"
    if not engine.image(tag)[0]:
        engine.tag(image, base)
        engine.build_archive(python.archive(f"FROM {base}\nCOPY python {PLACE}\n"), tag)
    return engine.image(tag)[0], python.command
