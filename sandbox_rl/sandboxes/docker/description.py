"""What an engine's containers are and what they lack, as a run shows it."""

from __future__ import annotations

from sandbox_rl.sandboxes.base import SandboxInfo
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.engine import DockerEngine, EngineFacts
from sandbox_rl.sandboxes.docker.options import own_terminals, podman_profile
from sandbox_rl.sandboxes.docker.users import USERS

__all__ = ["describe"]


def describe(
    facts: EngineFacts, settings: DockerSettings, image: str, engine: DockerEngine, network: str
) -> SandboxInfo:
    """The tier of sandboxes made by these settings.

    Args:
        image: the digest that the settings' image has.
        network: what can be reached, in words.
    """
    lacks = [
        f"The engine cannot bound {what} here."
        for what in ("memory", "pids", "cpu")
        if what not in facts.limits
    ]
    lacks.append("disk_mb and inodes hold for each of four writable directories, not for all together.")
    if not (few_terminals := own_terminals(settings, podman=engine.podman)):
        lacks.append("The terminals of the engine's machine are counted for all containers together.")
    if settings.read_only:
        lacks.append(
            "A sandbox can hold an advisory lock on what `read_only` shows, also against this machine."
        )
    if engine.podman:
        lacks.append("The number of files is not bounded, and what /tmp holds only by memory_mb.")
    if podman_profile(engine) == "":
        lacks.append("System calls are filtered by the engine's own profile, not by ours.")
    if engine.podman or not engine.local:
        lacks.append("A command that was killed for its memory is told by exit code 137 alone.")
    return SandboxInfo(
        backend="docker",
        tier=f"container+{settings.runtime or 'default runtime'}",
        version=f"{facts.name} {facts.version}",
        lacks=tuple(lacks),
        known_limits=() if few_terminals else ("RES-20",),
        details={
            "image": f"{settings.image} ({image})",
            "user": f"one per container, uid {USERS[0]} to {USERS[-1]} as the engine counts them",
            "network": network,
        },
    )
