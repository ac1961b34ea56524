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
from sandbox_rl.sandboxes.spawner.stage import Stage, enter_private_namespaces
from sandbox_rl.sandboxes.spawner.system import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

MESSAGE = 1 << 20
FIRST_UID = 0x70000000  # above what distributions, container engines and directories hand out
UIDS = 1 << 20
AGENT_FD, ARGUMENTS_FD, SECCOMP_FD, INFO_FD = 3, 4, 5, 6
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
        self.config = config
        self.limits: dict[str, Any] = config["limits"]
        self.live: dict[int, Live] = {}
        self.unburied: set[str] = set()
        self.next_uid = int.from_bytes(os.urandom(4), "big") % UIDS
        self.root = os.geteuid() == 0
        self.cgroups = Cgroups(config["owner"], self.limits) if config["cgroups"] else None
        enter_private_namespaces()
        self.stage = Stage(config)
        watched = 0 if self.cgroups and self.cgroups.memory else self.limits["memory_mb"]
        # The descriptor twice (to read and to write), the watchdog's MiB, the process limit, variables.
        config["command"] += [str(AGENT_FD), str(AGENT_FD), str(watched), str(self.limits["pids"])]
        config["command"] += [f"{name}={value}" for name, value in config["environment"].items()]
        raise_descriptor_limit()
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
            if self.cgroups and not self.cgroups.remove(request["name"]):
                self.unburied.add(request["name"])
            self.tell({"dead": request["name"], "error": f"{error.strerror}: {error.filename or ''}"})
        finally:
            os.close(descriptors[0])
        return True

    def create(self, name: str, agent: int) -> None:
        """Fork a launcher that becomes bubblewrap."""
        if self.cgroups:
            self.cgroups.make(name)
        self.next_uid = (self.next_uid + 1) % UIDS
        info, info_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        errors, errors_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = os.fork()
            if pid == 0:
                self.become_bubblewrap(name, FIRST_UID + self.next_uid, agent, info_writer, errors_writer)
        except OSError:
            os.close(info)
            os.close(errors)
            raise
        finally:
            os.close(info_writer)
            os.close(errors_writer)
        self.live[pid] = Live(name, info, errors)

    def become_bubblewrap(self, name: str, uid: int, agent: int, info: int, errors: int) -> None:
        """In the child: limits, private file system, another user, exec. Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if self.cgroups:
                # Before the namespaces are made: they must show this group as the root of all.
                self.cgroups.enter(name)
            self.stage.mount_writable(uid, self.limits["disk_mb"], self.limits["inodes"])
            arguments = os.open(f"{self.stage.root}/arguments", os.O_RDONLY)
            seccomp = os.open(f"{self.stage.root}/seccomp", os.O_RDONLY)
            null = os.open("/dev/null", os.O_RDWR)
            if self.root:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it
            set_limits(self.limits, self.cgroups is not None and self.cgroups.memory)
            # First out of the way of the targets, then onto them.
            moved = [move_up(fd) for fd in (null, null, errors, agent, arguments, seccomp, info)]
            for target, fd in enumerate(moved):
                os.dup2(fd, target)
            os.closerange(INFO_FD + 1, 256)
            os.chdir("/")
            argv = ["bwrap", "--args", str(ARGUMENTS_FD), "--", *self.config["command"]]
            os.execve(self.stage.bwrap, argv, self.config["command_environment"])
        except BaseException as error:
            os.write(errors, f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(127)

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
            sandbox = self.live.pop(pid, None)
            if sandbox is None:
                continue
            if os.WIFSIGNALED(status):
                self.kill_adopted()
            said = read_now(sandbox.errors).decode("utf-8", "replace").strip()
            os.close(sandbox.errors)
            os.close(sandbox.info)
            if self.cgroups and not self.cgroups.remove(sandbox.name):
                self.unburied.add(sandbox.name)
            self.tell({"dead": sandbox.name, "error": said[-500:], "status": status})
        if self.cgroups:
            self.unburied = {name for name in self.unburied if not self.cgroups.remove(name)}

    def kill_adopted(self) -> None:
        """Kill what a launcher left behind that was killed before its sandbox could die with it.

        Between its clone and its own start the first process waits for the launcher, for ever if that
        is gone. As an orphan it is a child of this process.
        """
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in self.live and parent_of(int(name)) == os.getpid():
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
        while (self.live or self.unburied) and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.002)
        if self.cgroups:
            self.cgroups.close()


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


def raise_descriptor_limit() -> None:
    """Two pipes are held for every sandbox."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


def move_up(fd: int) -> int:
    """A duplicate above all targets; it closes itself on exec."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 32)


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
