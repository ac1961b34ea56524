"""Launchers forked ahead of need, each already inside control groups of its own.

Joining a group waits for a grace period of the kernel (about 8 ms), a third of what stands between a
request and its sandbox. A spare has joined before the request comes. It holds nothing else: no
sandbox's descriptor, no mount, and it ends with the spawner. Its groups get the sandbox's name with the
job, which only version 1 allows.
"""

from __future__ import annotations

import os
import signal
import socket

from sandbox_rl.sandboxes.spawner.cgroups import Cgroups
from sandbox_rl.sandboxes.spawner.launch import Launcher

SPARES = 2  # a second one for the request that comes while the first is being replaced


class Spares:
    """The waiting launchers: process id → (name of the groups, our end of the channel).

    Args:
        cgroups: where their groups are made; None, or groups that cannot be renamed, mean no spares.
    """

    def __init__(self, launcher: Launcher, cgroups: Cgroups | None) -> None:
        self.launcher = launcher
        self.cgroups = cgroups if cgroups and cgroups.renames else None
        self.waiting: dict[int, tuple[str, socket.socket]] = {}

    def refill(self) -> None:
        """Fork until there are enough. A failure is left to the next call: no request depends on it.

        The groups have few names that are used over and over: the number of spares is all that shows.
        """
        taken = {group for group, _ in self.waiting.values()}
        for group in (f"spare-{index}" for index in range(SPARES)):
            if self.cgroups and group not in taken:
                try:
                    self.add(self.cgroups, group)
                except OSError:
                    return

    def add(self, cgroups: Cgroups, group: str) -> None:
        """Fork one.

        The groups are opened before the fork: the child enters these, even if they have been renamed by
        then and others have their name.
        """
        parent = os.getpid()
        cgroups.make(group)
        doors = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            doors = cgroups.doors(group)
            pid = os.fork()
            if pid == 0:
                self.launcher.launch_later(parent, doors, theirs)
        except OSError:
            ours.close()
            cgroups.remove(group)
            raise
        finally:
            theirs.close()
            for fd in doors:
                os.close(fd)
        self.waiting[pid] = (group, ours)

    def give(self, name: str, uid: int, fds: list[int]) -> int:
        """Have a spare start the sandbox `name`. Returns its process id, 0 if there is none.

        Raises:
            OSError: it cannot; groups called `name` may be left.
        """
        if not self.waiting or not self.cgroups:
            return 0
        pid, (group, channel) = next(iter(self.waiting.items()))
        try:
            self.cgroups.rename(group, name)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # its groups may have either name; it is buried like any other
            raise
        del self.waiting[pid]
        with channel:
            socket.send_fds(channel, [b"%d" % uid], fds)
        return pid

    def bury(self, pid: int) -> str:
        """Forget a spare that has ended; returns the name of its groups, "" if it was none."""
        if pid not in self.waiting:
            return ""
        group, channel = self.waiting.pop(pid)
        channel.close()
        return group
