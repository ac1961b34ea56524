"""The launcher: a fork of the spawner that becomes bubblewrap. Runs in the child, never returns."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
from typing import Any

from sandbox_rl.sandboxes.spawner.stage import Stage
from sandbox_rl.sandboxes.spawner.system import PR_SET_PDEATHSIG, prctl

AGENT_FD, ARGUMENTS_FD, SECCOMP_FD, INFO_FD = 3, 4, 5, 6
JOB = 32  # bytes of a job's text: the user id


class Launcher:
    """What every launcher needs: the shared layout, the limits and the command of the agent."""

    def __init__(self, config: dict[str, Any], stage: Stage, memory_is_bounded: bool) -> None:
        self.limits: dict[str, Any] = config["limits"]
        self.command: list[str] = config["command"]
        self.environment: dict[str, str] = config["command_environment"]
        self.stage = stage
        self.memory_is_bounded = memory_is_bounded

    def launch_now(self, parent: int, doors: list[int], uid: int, fds: list[int]) -> None:
        """Join the control groups behind `doors` and start; `fds` are agent, info and errors."""
        try:
            detach(parent)
            join(doors)
            self.become_bubblewrap(uid, *fds)
        except BaseException as error:
            os.write(fds[2], f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(127)

    def launch_later(self, parent: int, doors: list[int], channel: socket.socket) -> None:
        """Join the control groups, let go of everything else, wait for a user id and `fds`.

        The end of the channel is the end of the spawner, or of its need of this launcher.
        """
        try:
            detach(parent)
            join(doors)
            os.dup2(channel.fileno(), 3)
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            with socket.socket(fileno=3) as only:
                job, fds, _, _ = socket.recv_fds(only, JOB, 3)
            if len(fds) == 3:
                self.launch_now(parent, [], int(job), fds)
        finally:
            os._exit(127)

    def become_bubblewrap(self, uid: int, agent: int, info: int, errors: int) -> None:
        """Private file system, another user, limits, exec."""
        self.stage.mount_writable(uid, self.limits["disk_mb"], self.limits["inodes"])
        arguments = os.open(f"{self.stage.root}/arguments", os.O_RDONLY)
        seccomp = os.open(f"{self.stage.root}/seccomp", os.O_RDONLY)
        null = os.open("/dev/null", os.O_RDWR)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
        set_limits(self.limits, self.memory_is_bounded)
        # First out of the way of the targets, then onto them.
        moved = [move_up(fd) for fd in (null, null, errors, agent, arguments, seccomp, info)]
        for target, fd in enumerate(moved):
            os.dup2(fd, target)
        os.closerange(INFO_FD + 1, 256)
        os.chdir("/")
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


def join(doors: list[int]) -> None:
    """Enter control groups by their open `cgroup.procs`.

    Before the namespaces are made: they must show these groups as the root of all.
    """
    for door in doors:
        os.write(door, b"0")


def set_limits(limits: dict[str, Any], memory_is_bounded: bool) -> None:
    """Per-process limits; what a cgroup bounds for the whole sandbox is left to it."""
    size = limits["file_size_mb"] << 20
    chosen = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_FSIZE: size,
        resource.RLIMIT_MEMLOCK: 1 << 16,
        resource.RLIMIT_MSGQUEUE: 1 << 19,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if not memory_is_bounded:
        chosen[resource.RLIMIT_DATA] = limits["memory_mb"] << 20
    for kind, value in chosen.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def move_up(fd: int) -> int:
    """A duplicate above all targets; it closes itself on exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32)
