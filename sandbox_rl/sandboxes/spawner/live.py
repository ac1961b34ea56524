"""A sandbox as the spawner sees it: its launcher, and what connects the two until its end."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import time
from typing import Any

from sandbox_rl.sandboxes.spawner.cgroups import Cgroups, kill_process, stat_of, write_text
from sandbox_rl.sandboxes.spawner.stage import Stage
from sandbox_rl.sandboxes.spawner.system import PR_SET_PDEATHSIG, prctl
from sandbox_rl.sandboxes.spawner.users import lower_limit

AGENT_FD, ARGUMENTS_FD = 3, 4  # the others stand in the arguments: 5 seccomp, 6 info, 7 gate

QUEUED_SIGNALS = 1024
OOM_SCORE = 1000  # of 1000: before anything else when the machine has no memory left


class Launcher:
    """A fork of the spawner that becomes bubblewrap: `launch` runs in the child and never returns."""

    def __init__(self, config: dict[str, Any], stage: Stage, cgroups: Cgroups | None) -> None:
        self.limits: dict[str, Any] = config["limits"]
        self.command: list[str] = config["command"]
        self.environment: dict[str, str] = config["variables"]
        self.stage = stage
        self.cgroups = cgroups

    def launch(
        self, parent: int, group: str, uid: int, *, agent: int, errors: int, info: int, gate: int
    ) -> None:
        """Become a sandbox that waits for its gate to open, or say why not.

        Args:
            agent, errors, info, gate: ends of what connects it: to write to, and to wait at.
        """
        try:
            detach(parent)
            if self.cgroups:
                # Before the namespaces are made: they must show these groups as the root of all.
                self.cgroups.join(group)
            # What root has set so no process in the sandbox can undo.
            write_text("/proc/self/oom_score_adj", OOM_SCORE)
            self.stage.mount_writable(uid, self.limits["disk_mb"], self.limits["inodes"])
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
            set_limits(self.limits, bool(self.cgroups and self.cgroups.memory))
            os.chdir("/")
            self.become_bubblewrap(agent, errors, info, gate)
        except BaseException as error:
            os.write(errors, f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(127)

    def become_bubblewrap(self, agent: int, errors: int, info: int, gate: int) -> None:
        """Nothing is left of this process but the descriptors that bubblewrap is told of."""
        arguments = os.open(f"{self.stage.root}/arguments", os.O_RDONLY)
        seccomp = os.open(f"{self.stage.root}/seccomp", os.O_RDONLY)
        null = os.open("/dev/null", os.O_RDWR)
        targets = (null, null, errors, agent, arguments, seccomp, info, gate)
        # First out of the way of the targets, to duplicates that close themselves on exec, then onto them.
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32) for fd in targets]
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


class Live:
    """A started sandbox; it waits at its gate until it is given a name.

    Attributes:
        pid: of its launcher, later bubblewrap's.
        group: name of its control groups.
        uid: of its processes, as the spawner sees it.
        name: "" for a spare one.
        killed: when its end was asked for; 0 before.
        agent: the host's end of the agent's socket, until it has been handed over.
    """

    def __init__(self, launcher: Launcher, group: str, uid: int) -> None:
        """Fork the launcher.

        Raises:
            OSError: no process or no descriptors are left.
        """
        self.name = ""
        self.killed = 0.0
        self.group = group
        self.uid = uid
        self.said = b""
        self.fds: list[int] = []
        self.agent, theirs = socket.socketpair()
        parent = os.getpid()
        try:
            with theirs:
                self.info, info = self.pipe()
                self.errors, errors = self.pipe()
                gate, self.gate = self.pipe(blocks=True)
                self.pid = os.fork()
                if self.pid == 0:
                    ends = {"agent": theirs.fileno(), "errors": errors, "info": info, "gate": gate}
                    launcher.launch(parent, group, uid, **ends)
        except OSError:
            self.close()
            raise
        for fd in (info, errors, gate):
            self.fds.remove(fd)
            os.close(fd)

    def pipe(self, blocks: bool = False) -> tuple[int, int]:
        """(reader, writer), closed with this sandbox."""
        ends = os.pipe2(os.O_CLOEXEC | (0 if blocks else os.O_NONBLOCK))
        self.fds += ends
        return ends

    def hand_over(self, name: str, control: socket.socket) -> None:
        """Name it, tell the host how to reach its agent, and let it start.

        Raises:
            OSError: the host is gone.
        """
        self.name = name
        message = json.dumps({"made": name, "group": self.group}).encode()
        with self.agent:
            socket.send_fds(control, [message], [self.agent.fileno()])
        try:
            os.write(self.gate, b"!")
        except BrokenPipeError:
            return  # it has ended as a spare: its end is told like any other's
        self.fds.remove(self.gate)
        os.close(self.gate)

    def first_process(self) -> int:
        """Host-side process id of its first process, 0 while bubblewrap has not reported it.

        It is reported as JSON, in several writes.
        """
        self.said += read_now(self.info)
        try:
            return int(json.loads(self.said)["child-pid"])
        except (ValueError, KeyError):
            return 0

    def stopped(self) -> bool:
        """Whether its first process was stopped, as only something outside can."""
        return stat_of(self.first_process())[:1] in (["T"], ["t"])

    def kill(self) -> None:
        """Its first process, if known, takes all others with it; else the launcher.

        The kernel lets the first process go only when all others of its namespace are gone, and the
        launcher waits for it: the launcher's end means that nothing is left.
        """
        self.killed = self.killed or time.monotonic()
        first = self.first_process()
        if not (first and parent_of(first) == self.pid and kill_process(first)):
            kill_process(self.pid)

    def press(self, others: list[int]) -> None:
        """Help one that is slow to die: its first process must run to end the others, as they must to end.

        Kills every process by itself, from outside, and puts the first one before all others.

        Args:
            others: the processes of the sandbox, its launcher's as well or not: that is spared, because its
                end is what tells of theirs.
        """
        first = self.first_process()
        if not first or parent_of(first) != self.pid:
            return
        try:
            os.sched_setscheduler(first, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, first, -20)
        except OSError:
            pass  # only root may
        for pid in others:
            if pid not in (self.pid, first):
                kill_process(pid)

    def stderr_tail(self) -> str:
        """What launcher and bubblewrap have complained of."""
        return read_now(self.errors).decode("utf-8", "replace").strip()[-500:]

    def close(self) -> None:
        self.agent.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def parent_of(pid: int) -> int:
    """Parent of a process, 0 if there is no such process."""
    return int("".join(stat_of(pid)[1:2]) or 0)


def all_parents() -> dict[int, int]:
    """Process id → parent, of every process that /proc shows."""
    return {int(name): parent_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}


def descendants(top: int, parents: dict[int, int]) -> list[int]:
    """The processes below one."""
    found = [top]
    for pid in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def read_now(fd: int) -> bytes:
    """What a pipe holds at this moment."""
    try:
        return os.read(fd, 65_536)
    except OSError:
        return b""
