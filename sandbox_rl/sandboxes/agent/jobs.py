"""Running one command: a shell, two bounded streams, a deadline."""

from __future__ import annotations

import errno
import fcntl
import posix as os
import time

from sandbox_rl.sandboxes.agent.files import OWN_PROC
from sandbox_rl.sandboxes.agent.processes import Identity, identities, kill_others
from sandbox_rl.sandboxes.agent.wire import FLOODED, MEMORY, RAN, integer, number, take

SHELL = b"/bin/bash"
FALLBACK_SHELL = b"/bin/sh"
PRELUDE = 'read <&4; IFS= read -rd "" REPLY <&3; exec 3<&- 4<&-; eval "$REPLY"'
"""Waits until descriptor 4 is closed outside, takes the script from descriptor 3, closes both and runs it:
the script is in no argument list (no limit on its size, and `pkill -f` cannot match its own shell),
commands inherit 0, 1 and 2 only, and all of them the shell's niceness, set while it waits."""
POSIX_PRELUDE = 'read REPLY <&4; REPLY=$(cat <&3; echo .); exec 3<&- 4<&-; eval "${REPLY%.}"'

DRAIN_GRACE = 0.05  # seconds for output that is still in the pipe when the shell has ended
PIPE_SIZE = 1 << 20
FLOOD = 1 << 30  # bytes of one stream after which the command is killed
F_SETPIPE_SZ = 1031
READ_SIZE = 1 << 16  # of the one buffer, which idle sandboxes pay for in memory
READS_PER_ROUND = 64  # the socket and the deadline are looked at in between
DEFAULT_SIGNALS = (1, 2, 3, 13, 15, 17, 25)  # HUP INT QUIT PIPE TERM CHLD XFSZ


class Output:
    """One stream: its first and last bytes, at most `cap` together, and the true count."""

    def __init__(self, fd: int, cap: int) -> None:
        self.fd = fd
        self.total = 0
        self.head = bytearray()
        self.tail = bytearray()
        self.half = cap // 2

    def take_from_pipe(self, buffer: bytearray) -> int:
        """Read once. Returns the bytes read, 0 at the end, -1 when there is nothing now."""
        try:
            count = os.readv(self.fd, (buffer,))
        except BlockingIOError:
            return -1
        if count == 0:
            return 0
        self.total += count
        start = min(self.half - len(self.head), count)
        with memoryview(buffer) as view:
            if start > 0:
                self.head += view[:start]
            # of a long read only its end can be part of the tail
            self.tail += view[max(start, count - self.half, 0) : count]
        if len(self.tail) > 2 * self.half:
            del self.tail[: len(self.tail) - self.half]
        return count

    def fields(self) -> list[bytes]:
        """(head, tail, total); a whole stream has no tail."""
        if self.total <= 2 * self.half:
            return [bytes(self.head + self.tail), b"", number(self.total)]
        return [bytes(self.head), bytes(self.tail[-self.half :]) if self.half else b"", number(self.total)]

    def close(self) -> None:
        """Close the pipe; a background job that still writes gets SIGPIPE."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class CannotStart(Exception):
    """No shell could be started: the message is for the policy."""


class Job:
    """A running command."""

    def __init__(self, request: int, fields: list[bytes], environment: dict[str, str], nice: int) -> None:
        script, directory, milliseconds, cap = take(fields, 4)
        self.request = request
        self.started = time.monotonic()
        self.deadline = self.started + integer(milliseconds) / 1000
        self.spared: frozenset[Identity] = identities()
        self.status = RAN
        self.short_of_memory = False  # something of it was killed for its memory
        self.exit: tuple[int, float, int] | None = None  # wait status, CPU seconds, peak bytes
        self.ended = 0.0
        self.outputs: list[Output] = []
        self.pid = -1
        self._start(script, directory, integer(cap, 2), environment, nice)

    def _start(
        self, script: bytes, directory: bytes, cap: int, environment: dict[str, str], nice: int
    ) -> None:
        held: list[int] = []
        try:
            os.chdir(directory)
            if (os.getcwdb() + b"/").startswith(OWN_PROC):
                raise CannotStart(f"cannot start in {directory.decode('utf-8', 'replace')}: not permitted")
            held.append(script_file(script))
            for _ in range(2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                held.append(writer)
                self.outputs.append(Output(reader, cap))
                os.set_blocking(reader, False)
                widen(reader)
            held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            held += os.pipe2(os.O_CLOEXEC)
            self.pid = spawn_shell(held[:5], directory, environment)
            # Whatever they do, the commands leave the agent its turn. The shell waits for the gate.
            os.setpriority(os.PRIO_PROCESS, self.pid, nice)
        except OSError as error:
            self.close()
            if error.errno == errno.EAGAIN:
                raise
            where = directory.decode("utf-8", "replace")
            raise CannotStart(f"cannot start in {where}: {error.strerror}") from error
        finally:
            for fd in held:
                os.close(fd)
            os.chdir("/")

    def pump(self, buffer: bytearray) -> bool:
        """Read what is there. Returns whether more may be waiting."""
        more = False
        for output in self.outputs:
            for turn in range(READS_PER_ROUND):
                if output.fd < 0:
                    break
                count = output.take_from_pipe(buffer)
                if count == 0:
                    output.close()
                if count <= 0:
                    break
                more = more or turn == READS_PER_ROUND - 1
            if output.total > FLOOD and self.status == RAN:
                self.kill(FLOODED)
        return more

    def kill(self, status: int) -> None:
        """End the command's whole process tree; background jobs of earlier commands stay."""
        if self.status == RAN:
            self.status = status
        kill_others(self.spared)

    def reaped(self, status: int, cpu: float, peak: int) -> None:
        self.exit = (status, cpu, peak)
        self.ended = time.monotonic()

    def done(self, now: float) -> bool:
        """Whether the shell has ended and its output is in, or the grace for it is over."""
        if self.exit is None:
            return False
        return now - self.ended > DRAIN_GRACE or all(output.fd < 0 for output in self.outputs)

    def reply(self) -> list[bytes]:
        """(how, wait status, µs wall, µs CPU, peak bytes, then each stream's head, tail, total)."""
        status, cpu, peak = self.exit or (9, 0.0, 0)
        if self.short_of_memory and self.status == RAN and status in (9, 137 << 8):
            self.status = MEMORY  # the shell itself, or it passes on the end of its command
        spent = (self.ended or time.monotonic()) - self.started
        fields = [number(v) for v in (self.status, status, int(spent * 1e6), int(cpu * 1e6), peak)]
        for output in self.outputs:
            fields += output.fields()
        return fields

    def close(self) -> None:
        for output in self.outputs:
            output.close()


def script_file(script: bytes) -> int:
    """A descriptor from which a script can be read.

    Where memory of no process is refused for want of a cgroup that charges it, a file without a name on
    the sandbox's own store; on a full one, a pipe, which holds 64 KiB.

    Raises:
        OSError: a longer script and a full store.
    """
    for make in (memory_file, nameless_file):
        try:
            fd = make()
        except OSError:
            continue
        try:
            view = memoryview(script)
            while view:
                view = view[os.write(fd, view) :]
            os.lseek(fd, 0, 0)
            return fd
        except OSError:
            os.close(fd)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.write(writer, script) < len(script):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.set_blocking(reader, True)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return reader


def memory_file() -> int:
    """A file of no file system."""
    return os.memfd_create("script")


def nameless_file() -> int:
    """A file on the sandbox's store that nobody else can open."""
    return os.open("/tmp", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def refused(message: str) -> list[bytes]:
    """The reply to a command whose shell could not be started: exit status 126, as a shell says it."""
    text = message.encode("utf-8", "replace") + b"\n"
    zeros = [number(0)] * 3
    return [number(RAN), number(126 << 8), *zeros, b"", b"", number(0), text, b"", number(len(text))]


def widen(fd: int) -> None:
    """A bigger pipe makes a flood cheap; the kernel may refuse when the user holds many."""
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return


def spawn_shell(held: list[int], directory: bytes, environment: dict[str, str]) -> int:
    """Start the shell in its own session with exactly descriptors 0 to 4; returns its process id.

    Args:
        held: script, writers of stdout and stderr, /dev/null, reader of the gate.
    """
    script, out, err, null, gate = held
    bash = os.access(SHELL, os.X_OK)
    argv = ["bash" if bash else "sh", "-c", PRELUDE if bash else POSIX_PRELUDE]
    # All sources are above 4, so no duplicate overwrites one that is still needed.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (null, out, err, script, gate)]
    try:
        return os.posix_spawn(
            SHELL if bash else FALLBACK_SHELL,
            argv,
            {**environment, "PWD": directory.decode("utf-8", "surrogateescape")},
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(moved)],
            setsid=True,
            setsigmask=(),
            setsigdef=DEFAULT_SIGNALS,
        )
    finally:
        for fd in moved:
            os.close(fd)
