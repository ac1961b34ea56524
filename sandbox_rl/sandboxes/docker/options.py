"""What a sandbox's container may do, as the engine's options, and what it lacks."""

from __future__ import annotations

import resource
import secrets
from collections.abc import Sequence
from typing import Any

from sandbox_rl.errors import SetupError
from sandbox_rl.sandboxes.base import COMMAND_VARIABLES, SandboxInfo
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.engine import DockerEngine, EngineFacts
from sandbox_rl.sandboxes.docker.transport import LOADER
from sandbox_rl.sandboxes.egress.proxy import announce, proxy_environment
from sandbox_rl.sandboxes.egress.rules import NetworkRules
from sandbox_rl.sandboxes.seccomp import seccomp_profile

USERS = range(20_000, 60_000)
"""Unused on ordinary systems, and within the 65,536 ids that engines in user namespaces have."""

GROUP = 1000
"""The group of all, as images have it."""

AGENT_PROCESSES = 1
OOM_SCORE = 1000  # of 1000: before anything else when the machine has no memory left
QUEUED_SIGNALS, MESSAGE_BYTES, LOCKED_BYTES = 1024, 1 << 16, 1 << 16
MOST_NICE = 19  # a container's share of the processors is its group's: this holds among its own processes
RUNTIMES_OF_THIS_KERNEL = ("", "runc", "crun", "nvidia")
TERMINALS = {
    "Target": "/dev/pts",
    "Type": "volume",
    "VolumeOptions": {
        "NoCopy": True,
        "DriverConfig": {
            "Name": "local",
            "Options": {
                "type": "devpts",
                "device": "devpts",
                "o": "newinstance,nosuid,noexec,ptmxmode=0666,mode=0620,max=8",
            },
        },
    },
}
"""In the place of the engine's own: a few for each container. The volume goes with its container."""
PODMAN_PROCESSES = 32_768
WRITABLE = {"/testbed": "0755", "/tmp": "1777", "/dev/shm": "1777", "/home/sandbox": "0700"}


class ContainerUsers:
    """Hands out ids of users, from a random one on: two programs on one engine seldom share any."""

    def __init__(self) -> None:
        self._next = secrets.randbelow(len(USERS))
        self._taken: set[int] = set()

    def take(self) -> int:
        """One that no container of this backend has; `give_back` it when the container is gone.

        Raises:
            RuntimeError: all are taken.
        """
        for _ in USERS:
            user = USERS[self._next]
            self._next = (self._next + 1) % len(USERS)
            if user not in self._taken:
                self._taken.add(user)
                return user
        raise RuntimeError(f"all {len(USERS)} users of containers are taken")

    def give_back(self, user: int) -> None:
        self._taken.discard(user)


def container_options(
    settings: DockerSettings, image: str, user: int, python: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of `create_container`: `python`, else the settings', becomes the agent and first process.

    No other init is needed: the agent reaps what is orphaned, and nothing inside can signal it.
    """
    variables = COMMAND_VARIABLES | settings.environment
    # Descriptors to read and to write; no watchdog and no limit of processes, as the engine bounds both; the
    # niceness of commands; and as an engine in a container may be unable to fix the place, the agent does.
    arguments = ("0", "1", "0", "0", str(MOST_NICE), "1")
    return {
        "image": image,
        "entrypoint": [*(python or (settings.python,)), "-I", "-S", "-B", "-c", LOADER],
        "command": [*arguments, *(f"{name}={value}" for name, value in variables.items())],
        "user": f"{user}:{GROUP}",
        "working_dir": "/",
        "hostname": "sandbox",
        "stdin_open": True,
        "environment": {"LANG": "C.UTF-8"},
        "healthcheck": {"test": ["NONE"]},
        "volumes": list(settings.read_only.values()),
    }


def podman_profile(engine: DockerEngine) -> str | None:
    """The system-call profile as `host_options` wants it."""
    return engine.file_for_engine(seccomp_profile()) if engine.podman else None


def own_terminals(settings: DockerSettings, *, podman: bool) -> bool:
    """Whether a container has a few terminals of its own, rather than as many as the machine has left.

    Podman does not let its own be replaced; a runtime with a kernel of its own has its own.
    """
    return not podman and settings.runtime in RUNTIMES_OF_THIS_KERNEL


def host_options(settings: DockerSettings, user: int, *, podman_profile: str | None = None) -> dict[str, Any]:
    """Arguments of `create_host_config`.

    Args:
        user: id of the owner of the writable directories.
        podman_profile: for Podman, which takes no profile itself but the path of one on its machine, and no
            bound for inodes and no owner of a mount; "" leaves system calls to its own profile.
    """
    limits = settings.limits
    memory = limits.memory_mb << 20
    size = f"rw,exec,nosuid,nodev,size={limits.disk_mb}m"
    modes = WRITABLE if podman_profile is None else dict.fromkeys(WRITABLE, "1777")
    if podman_profile is not None:
        size += ",notmpcopyup"
    else:
        size += f",nr_inodes={limits.inodes},uid={user},gid={GROUP}"
    profile = seccomp_profile() if podman_profile is None else podman_profile
    ulimits = {
        "nofile": limits.open_files,
        "fsize": limits.file_size_mb << 20,
        "core": 0,
        "sigpending": QUEUED_SIGNALS,
        "msgqueue": MESSAGE_BYTES,
        "memlock": LOCKED_BYTES,
    }
    if podman_profile is not None:
        # Its own default may be more than it is allowed to give itself; what bounds processes is pids_limit.
        most_processes = (n for n in resource.getrlimit(resource.RLIMIT_NPROC) if n > 0)
        ulimits["nproc"] = min(PODMAN_PROCESSES, *most_processes)
    options: dict[str, Any] = {
        "auto_remove": True,
        "read_only": True,
        "tmpfs": {path: f"{size},mode={mode}" for path, mode in modes.items()},
        "network_mode": "none",
        "ipc_mode": "private",
        "cgroupns": "private",
        "mem_limit": memory,
        "memswap_limit": memory,
        "pids_limit": limits.pids + AGENT_PROCESSES,
        "nano_cpus": int(limits.cpus * 1e9),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true", *([f"seccomp={profile}"] if profile else [])],
        "log_config": {"type": "none", "config": {}},
        "ulimits": [{"name": name, "soft": most, "hard": most} for name, most in ulimits.items()],
        "oom_score_adj": OOM_SCORE,
        "binds": [f"{outside}:{inside}:ro" for outside, inside in settings.read_only.items()],
    }
    if own_terminals(settings, podman=podman_profile is not None):
        options["mounts"] = [TERMINALS]
    return options | settings.more_limits | ({"runtime": settings.runtime} if settings.runtime else {})


def with_network(settings: DockerSettings, rules: NetworkRules, *, local: bool) -> DockerSettings:
    """`settings` with the variables by which clients find the egress proxy.

    Raises:
        SetupError: the engine cannot show a socket of this machine to its containers.
    """
    if not local:
        raise SetupError(
            f"sandbox.network: {rules.mode} needs an engine on this machine, as the proxy runs here; set "
            "network: off, or run where the engine is"
        )
    if settings.runtime:
        raise SetupError(
            f"sandbox.network: {rules.mode} is not supported with runtime {settings.runtime!r}; set "
            "network: off, or leave `runtime` out"
        )
    announce(rules)
    return settings.model_copy(update={"environment": proxy_environment() | settings.environment})


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
        lacks.append("A command that was killed for its memory is recognised by exit code 137 alone.")
    return SandboxInfo(
        backend="docker",
        tier=f"container+{settings.runtime or 'default runtime'}",
        version=f"{'podman' if engine.podman else 'docker'} {facts.version}",
        lacks=tuple(lacks),
        known_limits=() if few_terminals else ("RES-20",),
        details={
            "image": f"{settings.image} ({image})",
            "user": f"one per container, uid {USERS[0]} to {USERS[-1]} as the engine counts them",
            "network": network,
        },
    )
