"""The launcher: a fork of the spawner that becomes bubblewrap. Runs in the child, never returns."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from typing import Any

from sandbox_rl.sandboxes.spawner.cgroups import Cgroups
from sandbox_rl.sandboxes.spawner.stage import Stage
from sandbox_rl.sandboxes.spawner.system import PR_SET_PDEATHSIG, prctl
from sandbox_rl.sandboxes.spawner.users import lower_limit

AGENT_FD, ARGUMENTS_FD = 3, 4  # the others stand in the arguments: 5 seccomp, 6 info, 7 gate

QUEUED_SIGNALS = 1024
FIRST_TO_GO = 1000  # of 1000: before anything else when the machine has no memory left


class Handles:
    """A launcher's ends of what connects it: agent, errors and info to write to, gate to wait at."""

    def __init__(self, agent: int, errors: int, info: int, gate: int) -> None:
        self.agent = agent
        self.errors = errors
        self.info = info
        self.gate = gate


class Launcher:
    """What every launcher needs: the shared layout, the limits and the command of the agent."""

    def __init__(self, config: dict[str, Any], stage: Stage, cgroups: Cgroups | None) -> None:
        self.limits: dict[str, Any] = config["limits"]
        self.command: list[str] = config["command"]
        self.environment: dict[str, str] = config["variables"]
        self.stage = stage
        self.cgroups = cgroups

    def launch(self, parent: int, group: str, uid: int, fds: Handles) -> None:
        """Become a sandbox that waits for its gate to open, or say why not."""
        try:
            detach(parent)
            if self.cgroups:
                # Before the namespaces are made: they must show these groups as the root of all.
                self.cgroups.join(group)
            be_the_first_to_go()
            self.stage.mount_writable(uid, self.limits["disk_mb"], self.limits["inodes"])
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
            set_limits(self.limits, bool(self.cgroups and self.cgroups.memory))
            os.chdir("/")
            self.become_bubblewrap(fds)
        except BaseException as error:
            os.write(fds.errors, f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(127)

    def become_bubblewrap(self, fds: Handles) -> None:
        """Nothing is left of this process but the descriptors that bubblewrap is told of."""
        arguments = os.open(f"{self.stage.root}/arguments", os.O_RDONLY)
        seccomp = os.open(f"{self.stage.root}/seccomp", os.O_RDONLY)
        null = os.open("/dev/null", os.O_RDWR)
        # First out of the way of the targets, then onto them.
        targets = (null, null, fds.errors, fds.agent, arguments, seccomp, fds.info, fds.gate)
        moved = [move_up(fd) for fd in targets]
        for target, fd in enumerate(moved):
            os.dup2(fd, target)
        os.closerange(len(targets), 256)
        argv = ["bwrap", "--args", str(ARGUMENTS_FD), "--", *self.command]
        os.execve(self.stage.bwrap, argv, self.environment)


def detach(parent: int) -> None:
    """Be an ordinary process that dies with the spawner."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        os._exit(127)


def be_the_first_to_go() -> None:
    """When the machine runs out of memory. What root has set so nobody in the sandbox can take back."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(FIRST_TO_GO))


def set_limits(limits: dict[str, Any], memory_is_bounded: bool) -> None:
    """Per-process limits; what a cgroup bounds for the whole sandbox is left to it."""
    size = limits["file_size_mb"] << 20
    chosen = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_FSIZE: size,
        resource.RLIMIT_MEMLOCK: 1 << 16,
        resource.RLIMIT_MSGQUEUE: 1 << 16,
        resource.RLIMIT_SIGPENDING: QUEUED_SIGNALS,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if not memory_is_bounded:
        chosen[resource.RLIMIT_DATA] = limits["memory_mb"] << 20
    for kind, value in chosen.items():
        lower_limit(kind, value)


def move_up(fd: int) -> int:
    """A duplicate above all targets; it closes itself on exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32)
