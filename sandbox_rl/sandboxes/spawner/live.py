"""A sandbox as the spawner sees it: what connects the two, from its launcher's start to its end."""

from __future__ import annotations

import json
import os
import socket
import time

from sandbox_rl.sandboxes.spawner.cgroups import kill_process, stat_of
from sandbox_rl.sandboxes.spawner.launch import Handles, Launcher


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
                    launcher.launch(parent, group, uid, Handles(theirs.fileno(), errors, info, gate))
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

    def last_words(self) -> str:
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
