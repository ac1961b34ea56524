"""The spawner's loop: make, kill and remove sandboxes for the process at the other end."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

from sandbox_rl.sandboxes.spawner.cgroups import Cgroups, kill_process
from sandbox_rl.sandboxes.spawner.live import (
    AGENT_FD,
    Launcher,
    Live,
    all_parents,
    descendants,
    parent_of,
)
from sandbox_rl.sandboxes.spawner.stage import Stage
from sandbox_rl.sandboxes.spawner.system import (
    CAP_SYS_RESOURCE,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    has_capability,
    prctl,
)
from sandbox_rl.sandboxes.spawner.users import enter_private_namespaces

MESSAGE = 1 << 20
NICE, MOST_NICE = 5, 19  # of commands: behind the agent, and where nothing else bounds them behind the host
CLOSING_TIME = 10.0  # seconds for all sandboxes to go when the host has gone
SLOW = 0.05  # seconds in which a sandbox that does not resist has ended
PRESS_INTERVAL = 0.02
SPARES = 2
"""Sandboxes laid out ahead of need, up to the start of the agent. Joining control groups waits for the
kernel (8 ms), namespaces and mounts take as long again: a request waits for neither. A second spare is
for the request that comes while the first is being replaced. What waits has no memory to speak of, and
its groups show that it is there, not for whom."""


class Spawner:
    """Owns every sandbox of one backend."""

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control = control
        self.limits: dict[str, Any] = config["limits"]
        self.live: dict[int, Live] = {}
        self.spares: list[Live] = []
        self.made = 0
        self.next_press = 0.0
        self.leftovers: set[str] = set()
        self.cgroups = Cgroups(config["owner"], self.limits) if config["cgroups"] else None
        keeps_place = not has_capability(CAP_SYS_RESOURCE)  # as the first to go without memory
        self.users = enter_private_namespaces([path for path, _ in config["shown"]])
        self.bounded = bool(self.cgroups and self.cgroups.memory)
        uncharged = not self.bounded and "seccomp_uncharged" in config
        stage = Stage(config, config["seccomp_uncharged" if uncharged else "seccomp"])
        watched = 0 if self.bounded else self.limits["memory_mb"]
        # The descriptor twice (to read and to write), the watchdog's MiB, the process limit, variables.
        config["command"] += [str(AGENT_FD), str(AGENT_FD), str(watched), str(self.limits["pids"])]
        # Where a group has its own share of the processors, niceness is among its own processes only.
        shared = not (self.cgroups and {"", "cpu"} & self.cgroups.roots.keys())
        config["command"] += [str(NICE if shared else MOST_NICE), str(int(keeps_place))]
        config["command"] += [f"{name}={value}" for name, value in config["environment"].items()]
        raise_descriptor_limit()
        self.launcher = Launcher(config, stage, self.cgroups)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # Stopped by somebody, it would not see that the host has gone, and keep its sandboxes for ever. After
        # the user was settled: a change of that clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGCONT)

    def describe(self) -> dict[str, Any]:
        groups = self.cgroups
        return {
            "ready": True,
            "users_shared": self.users.shared_because,
            "divided": self.users.divided,
            "locks_shared": self.launcher.stage.tree.locks_shared,
            "controllers": sorted(groups.roots) if groups else [],
            "memory": self.bounded,
            "refused": groups.refused if groups else "switched off",
            "events": groups.events() if groups else "",
        }

    def run(self) -> None:
        """Until the host goes away."""
        wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a Ctrl-C is for the host, which then closes the socket
        self.refill()
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(20 if self.leftovers or self.dying() else None)}
            if wakeup in ready:
                os.read(wakeup, 4096)
            self.reap()
            self.press()
            if self.control.fileno() in ready and not self.take_request():
                break
        self.shut_down()

    def take_request(self) -> bool:
        """Serve one message. False when the host is gone."""
        try:
            data = self.control.recv(MESSAGE)
        except OSError:
            return False
        if not data:
            return False
        request = json.loads(data)
        named = next((live for live in self.live.values() if live.name == request["name"]), None)
        if request["do"] == "look":
            self.tell({"seen": request["name"], "stopped": named is not None and named.stopped()})
            return True
        if request["do"] == "kill":
            if named is not None:
                named.kill()
            return True
        sandbox: Live | None = None
        try:
            sandbox = self.spares.pop(0) if self.spares else self.start()
            sandbox.hand_over(request["name"], self.control)
        except OSError as error:
            if sandbox is not None:
                sandbox.kill()  # nobody has it, and it would wait for ever
            self.tell({"dead": request["name"], "error": f"{error.strerror}: {error.filename or ''}"})
        self.refill()
        return True

    def start(self) -> Live:
        """A new sandbox that waits.

        Raises:
            OSError: it cannot be made.
        """
        self.made += 1
        uid = self.users.take({sandbox.uid for sandbox in self.live.values()})
        group = f"{self.made:x}"
        try:
            if self.cgroups:
                self.cgroups.make(group)
            sandbox = Live(self.launcher, group, uid)
        except OSError:
            self.remove(group)
            raise
        self.live[sandbox.pid] = sandbox
        return sandbox

    def refill(self) -> None:
        """Start spares until there are enough. A failure is left to the next call: no request waits."""
        try:
            while len(self.spares) < SPARES:
                self.spares.append(self.start())
        except OSError:
            return

    def reap(self) -> None:
        """Clean up after what has ended and tell the host."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            sandbox = self.live.pop(pid, None)
            if sandbox is None:
                continue
            if os.WIFSIGNALED(status):
                self.kill_adopted()
            if sandbox in self.spares:
                self.spares.remove(sandbox)
            else:
                outside = self.killed_outside(sandbox, status)
                self.tell({"dead": sandbox.name, "error": sandbox.stderr_tail(), "outside": outside})
            sandbox.close()
            self.remove(sandbox.group)
        if self.cgroups:
            self.leftovers = {name for name in self.leftovers if not self.cgroups.remove(name)}

    def killed_outside(self, sandbox: Live, status: int) -> bool:
        """Whether somebody else has killed it: no process inside can, and neither did we or the kernel.

        Where nobody counts what the kernel kills for its memory, it may have been that.
        """
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        killed = killed or os.waitstatus_to_exitcode(status) == 128 + signal.SIGKILL  # its first process
        return killed and not sandbox.killed and bool(self.cgroups and self.cgroups.kills(sandbox.group) == 0)

    def dying(self) -> list[Live]:
        return [sandbox for sandbox in self.live.values() if sandbox.killed]

    def press(self) -> None:
        """Help those along that are slow to die, now and then."""
        now = time.monotonic()
        slow = [sandbox for sandbox in self.dying() if now - sandbox.killed > SLOW]
        if not slow or now < self.next_press:
            return
        groups = self.cgroups if self.cgroups and self.cgroups.roots else None
        parents = {} if groups else all_parents()
        for sandbox in slow:
            found = groups.members(sandbox.group) if groups else descendants(sandbox.first_process(), parents)
            sandbox.press(found)
        self.next_press = time.monotonic() + PRESS_INTERVAL

    def remove(self, name: str) -> None:
        """Remove the groups of that name, now or as soon as nothing lives in them."""
        if self.cgroups and not self.cgroups.remove(name):
            self.leftovers.add(name)

    def kill_adopted(self) -> None:
        """Kill what a launcher left behind that was killed before its sandbox could die with it.

        Between its clone and its own start the first process waits for the launcher, for ever if that
        is gone. As an orphan it is a child of this process.
        """
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in self.live and parent_of(int(name)) == os.getpid():
                kill_process(int(name))

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; a host that is gone is noticed where messages are received."""
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            return

    def shut_down(self) -> None:
        """Kill everything, remove the cgroups."""
        deadline = time.monotonic() + CLOSING_TIME
        for sandbox in self.live.values():
            sandbox.kill()
        while (self.live or self.leftovers) and time.monotonic() < deadline:
            self.reap()
            self.press()
            time.sleep(0.002)
        if self.cgroups:
            self.cgroups.close()


def raise_descriptor_limit() -> None:
    """Two pipes are held for every sandbox, a third and a socket for a spare one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


def main(argv: list[str]) -> None:
    """The only argument is the descriptor of a SOCK_SEQPACKET socket; the first message is the config."""
    control = socket.socket(fileno=int(argv[0]))
    control.set_inheritable(False)
    try:
        spawner = Spawner(control, json.loads(control.recv(MESSAGE)))
    except Exception as error:
        control.send(json.dumps({"ready": False, "error": f"{type(error).__name__}: {error}"}).encode())
        return
    spawner.tell(spawner.describe())
    spawner.run()


if __name__ == "__main__":
    main(sys.argv[1:])
