"""The agent's loop: requests from the host, output and ends of commands, deadlines."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without the enums, 4 ms faster
import posix as os
import resource
import select
import sys
import time

from sandbox_rl.sandboxes.agent.files import FileTrouble, read_answer, read_file, trouble_of, write_file
from sandbox_rl.sandboxes.agent.jobs import READ_SIZE, CannotStart, Job, refused
from sandbox_rl.sandboxes.agent.network import hand_out_listener
from sandbox_rl.sandboxes.agent.processes import (
    SIGCONT,
    SIGKILL,
    SIGSTOP,
    kill_all,
    largest_beyond,
    own_place,
    put_back,
    send,
    table,
)
from sandbox_rl.sandboxes.agent.trees import list_dir, pack, unpack
from sandbox_rl.sandboxes.agent.wire import (
    ANSWER,
    BAD_REQUEST,
    CANCEL,
    EXEC,
    FILE_ERROR,
    FREEZE,
    HEADER,
    LIST,
    MAX_REQUEST,
    OK,
    PACK,
    PING,
    READ,
    THAW,
    TIMED_OUT,
    UNPACK,
    WRITE,
    WireError,
    decode,
    encode,
    integer,
)

FILE_OPERATIONS = {
    READ: read_file,
    WRITE: write_file,
    LIST: list_dir,
    PACK: pack,
    UNPACK: unpack,
    ANSWER: read_answer,
}
WATCH_INTERVAL = 0.1  # seconds between looks at the memory in use, where no cgroup bounds it
NPROC_RETRIES = 20


class Agent:
    """Serves one host over a pair of descriptors (the same one twice for a socket)."""

    def __init__(
        self, reader: int, writer: int, environment: dict[str, str], memory: int, nice: int, keeps_place: bool
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.environment = environment
        self.memory = memory
        self.nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        self.received = bytearray()
        self.jobs: list[Job] = []
        self.buffer = bytearray(READ_SIZE)
        self.wakeup = wake_on_child()
        self.next_watch = 0.0
        self.place = own_place() if keeps_place else b""
        self.watches = bool(self.memory or self.place)

    def serve(self) -> None:
        """Until the host goes away."""
        busy = False
        while True:
            poller = select.poll()
            poller.register(self.reader, select.POLLIN)
            poller.register(self.wakeup, select.POLLIN)
            for job in self.jobs:
                for output in job.outputs:
                    if output.fd >= 0:
                        poller.register(output.fd, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(0 if busy else self.milliseconds_to_wait())}
            if self.wakeup in ready:
                os.read(self.wakeup, 4096)
            if self.reader in ready and not self.receive():
                return
            busy = self.advance()

    def milliseconds_to_wait(self) -> float | None:
        """Until the next deadline; None when there is none."""
        now = time.monotonic()
        times = [job.ended + 0.051 if job.exit else job.deadline for job in self.jobs]
        if self.watches and (self.jobs or self.next_watch):
            times.append(self.next_watch)
        return max(0.0, (min(times) - now) * 1000 + 1) if times else None

    def advance(self) -> bool:
        """Move every command on. Returns whether output may be waiting."""
        busy = False
        for job in self.jobs:
            busy = job.pump(self.buffer) or busy
        self.reap()
        now = time.monotonic()
        for job in list(self.jobs):
            if job.exit is None and now >= job.deadline:
                job.kill(TIMED_OUT)
                job.deadline = now + 0.05  # again, should something have slipped through
            elif job.done(now):
                job.pump(self.buffer)
                self.finish(job)
        if self.watches and now >= self.next_watch:
            self.watch_memory(now)
        return busy

    def finish(self, job: Job) -> None:
        self.jobs.remove(job)
        job.close()
        self.reply(job.request, OK, job.reply())

    def reap(self) -> None:
        """Collect every process that has ended; all orphans are children of the first process."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for job in self.jobs:
                if job.pid == pid and job.exit is None:
                    job.reaped(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def watch_memory(self, now: float) -> None:
        """Kill the largest processes while all together hold more than the limit, where nothing else does."""
        rows = table()
        self.next_watch = now + WATCH_INTERVAL if rows else 0.0
        if self.place:
            for pid in put_back(self.place, rows):
                send(pid, SIGKILL)
        for pid in largest_beyond(self.memory, rows) if self.memory else ():
            send(pid, SIGKILL)
            for job in self.jobs:
                if (pid, rows[pid][1]) not in job.spared:
                    job.short_of_memory = True

    def receive(self) -> bool:
        """Take what the host sent and serve every complete request. False when the host is gone."""
        data = os.read(self.reader, 1 << 20)
        if not data:
            return False
        self.received += data
        while len(self.received) >= HEADER:
            size = int.from_bytes(self.received[:HEADER], "big")
            if size > MAX_REQUEST:
                return False
            if len(self.received) < HEADER + size:
                break
            body = bytes(self.received[HEADER : HEADER + size])
            del self.received[: HEADER + size]
            self.handle(*decode(body))
        return True

    def handle(self, request: int, code: int, fields: list[bytes]) -> None:
        """Serve one request; whatever goes wrong becomes a reply."""
        try:
            if code == EXEC:
                self.execute(request, fields)
                return
            self.reply(request, OK, self.serve_now(code, fields))
        except (FileTrouble, OSError) as error:
            trouble = error if isinstance(error, FileTrouble) else trouble_of(error)
            self.reply(request, FILE_ERROR, [trouble.problem, trouble.detail.encode()])
        except MemoryError:
            self.reply(request, FILE_ERROR, [b"no_space", b"out of memory"])
        except (WireError, ValueError) as error:
            self.reply(request, BAD_REQUEST, [str(error).encode()])

    def serve_now(self, code: int, fields: list[bytes]) -> list[bytes]:
        """All operations that take no time of their own."""
        if code == PING:
            return fields
        if code == CANCEL:
            for job in self.jobs:
                if job.request == integer(fields[0]):
                    job.kill(TIMED_OUT)
            return []
        if code in (FREEZE, THAW):
            send(-1, SIGSTOP if code == FREEZE else SIGCONT)
            return []
        if code == ANSWER:
            self.kill_everything()
        if code not in FILE_OPERATIONS:
            raise WireError(f"unknown operation {code}")
        return FILE_OPERATIONS[code](fields)

    def execute(self, request: int, fields: list[bytes]) -> None:
        """Start a command.

        When earlier background jobs hold every process slot, they are killed: the next command must
        always be able to start.
        """
        for attempt in range(NPROC_RETRIES):
            try:
                self.jobs.append(Job(request, fields, self.environment, self.nice))
            except CannotStart as reason:
                self.reply(request, OK, refused(str(reason)))
            except BlockingIOError:
                if attempt == NPROC_RETRIES - 1:
                    self.reply(request, OK, refused("no process can be started: the limit is reached"))
                    return
                self.kill_everything()
                continue
            return

    def kill_everything(self) -> None:
        """Kill and reap all processes; running commands end as killed."""
        kill_all()
        for job in self.jobs:
            if job.exit is None:
                job.reaped(SIGKILL, 0.0, 0)

    def reply(self, request: int, code: int, fields: list[bytes]) -> None:
        """Send a reply, waiting for the host to take it."""
        view = memoryview(encode(request, code, fields))
        while view:
            view = view[os.write(self.writer, view) :]


def wake_on_child() -> int:
    """A descriptor that becomes readable whenever a child ends."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    # The kernel keeps signals from inside away from the first process, unless it handles them.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    return reader


def hide() -> None:
    """Make this process unreadable for the commands, which run as the same user.

    The embedded backend starts it from a file that may be executed but not read: then it already is.
    """
    try:
        os.close(os.open("/proc/self/environ", os.O_RDONLY))
    except OSError:
        return
    import ctypes

    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def main(argv: list[str]) -> None:
    """Arguments: reader fd, writer fd, MiB for the watchdog or 0, process limit or 0, niceness of commands,
    1 to put processes back to where the kernel first looks for memory or 0, NAME=VALUE …

    A value without a name is how the egress proxy gets its listener (`hand_out_listener`).
    """
    reader, writer, memory_mb, processes, nice, keep = (int(value) for value in argv[:6])
    hide()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in {0, 1, 2} - {reader, writer}:
        os.dup2(null, fd)
    os.closerange(max(3, reader + 1, writer + 1), 256)
    for fd in (reader, writer):
        os.set_inheritable(fd, False)
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    environment = dict(value.split("=", 1) for value in argv[6:])
    if handover := environment.pop("", ""):
        hand_out_listener(handover, reader)
    agent = Agent(reader, writer, environment, memory_mb << 20, nice, bool(keep))
    agent.reply(0, OK, [b"%d.%d" % sys.version_info[:2]])
    try:
        agent.serve()
    except (OSError, WireError):
        pass  # the host is gone or is not the host
    finally:
        send(-1, SIGKILL)
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
