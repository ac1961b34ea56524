"""The spawner's loop: make, kill and bury sandboxes for the process at the other end."""

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

from sandbox_rl.sandboxes.spawner.cgroups import Cgroups
from sandbox_rl.sandboxes.spawner.launch import AGENT_FD, Launcher
from sandbox_rl.sandboxes.spawner.spares import Spares
from sandbox_rl.sandboxes.spawner.stage import Stage, enter_private_namespaces
from sandbox_rl.sandboxes.spawner.system import PR_SET_CHILD_SUBREAPER, prctl

MESSAGE = 1 << 20
FIRST_UID = 0x70000000  # above what distributions, container engines and directories hand out
UIDS = 1 << 20
CLOSING_TIME = 10.0  # seconds for all sandboxes to go when the host has gone


class Live:
    """A running sandbox: its launcher (bubblewrap), what it says, and its first process if known."""

    def __init__(self, name: str, info: int, errors: int) -> None:
        self.name = name
        self.info = info
        self.errors = errors
        self.said = b""

    def first_process(self) -> int:
        """Host-side process id of its first process, 0 while bubblewrap has not reported it.

        It is reported as JSON, in several writes.
        """
        self.said += read_now(self.info)
        try:
            return int(json.loads(self.said)["child-pid"])
        except (ValueError, KeyError):
            return 0


class Spawner:
    """Owns every sandbox of one backend."""

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control = control
        self.limits: dict[str, Any] = config["limits"]
        self.live: dict[int, Live] = {}
        self.unburied: set[str] = set()
        self.next_uid = int.from_bytes(os.urandom(4), "big") % UIDS
        self.root = os.geteuid() == 0
        self.cgroups = Cgroups(config["owner"], self.limits) if config["cgroups"] else None
        enter_private_namespaces()
        stage = Stage(config)
        bounded = bool(self.cgroups and self.cgroups.memory)
        watched = 0 if bounded else self.limits["memory_mb"]
        # The descriptor twice (to read and to write), the watchdog's MiB, the process limit, variables.
        config["command"] += [str(AGENT_FD), str(AGENT_FD), str(watched), str(self.limits["pids"])]
        config["command"] += [f"{name}={value}" for name, value in config["environment"].items()]
        raise_descriptor_limit()
        self.launcher = Launcher(config, stage, bounded)
        self.spares = Spares(self.launcher, self.cgroups)
        prctl(PR_SET_CHILD_SUBREAPER, 1)

    def describe(self) -> dict[str, Any]:
        """What the host wants to know."""
        groups = self.cgroups
        bounded = bool(groups and groups.memory)
        return {
            "ready": True,
            "root": self.root,
            "controllers": sorted(groups.roots) if groups else [],
            "memory": bounded,
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
        self.spares.refill()
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(20 if self.unburied else None)}
            if wakeup in ready:
                os.read(wakeup, 4096)
            self.reap()
            if self.control.fileno() in ready and not self.take_request():
                break
        self.shut_down()

    def take_request(self) -> bool:
        """Serve one message. False when the host is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE, 1)
        except OSError:
            return False
        if not data:
            return False
        request = json.loads(data)
        if request["do"] == "kill":
            self.kill(request["name"])
            return True
        try:
            self.create(request["name"], descriptors[0])
        except OSError as error:
            self.bury(request["name"])
            self.tell({"dead": request["name"], "error": f"{error.strerror}: {error.filename or ''}"})
        finally:
            os.close(descriptors[0])
        self.spares.refill()
        return True

    def create(self, name: str, agent: int) -> None:
        """Start a launcher: a spare one, or a new one if there is none."""
        self.next_uid = (self.next_uid + 1) % UIDS
        uid = FIRST_UID + self.next_uid
        info, info_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        errors, errors_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fds = [agent, info_writer, errors_writer]
        try:
            pid = self.spares.give(name, uid, fds) or self.fork(name, uid, fds)
        except OSError:
            os.close(info)
            os.close(errors)
            raise
        finally:
            os.close(info_writer)
            os.close(errors_writer)
        self.live[pid] = Live(name, info, errors)

    def fork(self, name: str, uid: int, fds: list[int]) -> int:
        """A new launcher's process id."""
        parent, doors = os.getpid(), []
        if self.cgroups:
            self.cgroups.make(name)
            doors = self.cgroups.doors(name)
        try:
            pid = os.fork()
            if pid == 0:
                self.launcher.launch_now(parent, doors, uid, fds)
        finally:
            for fd in doors:
                os.close(fd)
        return pid

    def kill(self, name: str) -> None:
        """End a sandbox: its first process, if known, takes all others with it; else the launcher.

        The kernel lets the first process go only when all others of its namespace are gone, and the
        launcher waits for it: the launcher's end means that nothing is left.
        """
        for pid, sandbox in self.live.items():
            if sandbox.name == name:
                first = sandbox.first_process()
                if not (first and parent_of(first) == pid and signalled(first)):
                    signalled(pid)

    def reap(self) -> None:
        """Bury what has ended and tell the host."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.bury(self.spares.bury(pid))
            sandbox = self.live.pop(pid, None)
            if sandbox is None:
                continue
            if os.WIFSIGNALED(status):
                self.kill_adopted()
            said = read_now(sandbox.errors).decode("utf-8", "replace").strip()
            os.close(sandbox.errors)
            os.close(sandbox.info)
            self.bury(sandbox.name)
            self.tell({"dead": sandbox.name, "error": said[-500:], "status": status})
        if self.cgroups:
            self.unburied = {name for name in self.unburied if not self.cgroups.remove(name)}

    def bury(self, name: str) -> None:
        """Remove the groups of that name, if any, now or as soon as nothing lives in them."""
        if name and self.cgroups and not self.cgroups.remove(name):
            self.unburied.add(name)

    def kill_adopted(self) -> None:
        """Kill what a launcher left behind that was killed before its sandbox could die with it.

        Between its clone and its own start the first process waits for the launcher, for ever if that
        is gone. As an orphan it is a child of this process.
        """
        ours = {*self.live, *self.spares.waiting}
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in ours and parent_of(int(name)) == os.getpid():
                signalled(int(name))

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; a host that is gone is noticed where messages are received."""
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            return

    def shut_down(self) -> None:
        """Kill everything, remove the cgroups."""
        deadline = time.monotonic() + CLOSING_TIME
        for sandbox in list(self.live.values()):
            self.kill(sandbox.name)
        for pid in self.spares.waiting:
            signalled(pid)
        while (self.live or self.spares.waiting or self.unburied) and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.002)
        if self.cgroups:
            self.cgroups.close()


def raise_descriptor_limit() -> None:
    """Two pipes are held for every sandbox."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


def parent_of(pid: int) -> int:
    """Parent of a process, 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def signalled(pid: int) -> bool:
    """Kill a process; False if there is none."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def read_now(fd: int) -> bytes:
    """What a pipe holds at this moment."""
    try:
        return os.read(fd, 65_536)
    except OSError:
        return b""


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
