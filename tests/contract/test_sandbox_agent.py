"""What the agent and the embedded backend promise beyond the common contract."""

import asyncio
import contextlib
import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from sandbox_rl.cli import whole_app
from sandbox_rl.errors import SandboxFault, SetupError
from sandbox_rl.preflight.self_check import ATTACKS, CheckVerdict, check_sandboxes, check_scoring
from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox
from sandbox_rl.sandboxes.base import SandboxInfo, SandboxLimits
from sandbox_rl.sandboxes.cases import ALL_CASES, CONTROLS
from sandbox_rl.sandboxes.config import EmbeddedSettings, PoolSettings
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
from sandbox_rl.sandboxes.pool import SandboxPool
from sandbox_rl.sandboxes.snapshots import branch, take_snapshot
from sandbox_rl.types import ExecStatus

from ..processes import tree_of
from ..ray_cluster import of_clusters

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = Path(sys.prefix)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[EmbeddedBackend]:
    async with EmbeddedBackend() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def sandbox(backend: EmbeddedBackend) -> AsyncIterator[AgentSandbox]:
    async with backend.sandbox() as made:
        yield made


def children() -> set[int]:
    """Every process below this one, the spawner's grandchildren included; Ray's come and go as it likes."""
    return tree_of(os.getpid()) - {os.getpid()} - of_clusters()


def spawners() -> set[int]:
    """The spawners, and launchers at their very start, which are forks of them."""
    return {pid for pid in children() if b"/proc/self/fd/" in _command_line(pid)}


def spares() -> set[int]:
    """Two processes of each sandbox that waits: bubblewrap and what will be the first process."""
    wrapped = {pid for pid in children() if _command_line(pid).startswith(b"bwrap\0")}
    return {pid for pid in wrapped if not any(_parent(agent) == pid for agent in agents())}


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def agents() -> set[int]:
    """First processes of our sandboxes."""
    return {pid for pid in children() if _command_line(pid).startswith(b"/run/agent/")}


def start_owner() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)


def fake_bwrap(directory: Path) -> Path:
    """An executable that answers as a new bubblewrap and makes no sandbox."""
    broken = directory / "bwrap"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && echo bubblewrap 0.9.0 || echo no namespaces >&2\n")
    broken.chmod(0o755)
    directory.chmod(0o755)
    return broken


def groups(owner: int) -> set[str]:
    """Cgroups of the backends of a process; other processes of this machine have theirs."""
    return {
        os.path.join(directory, name)
        for directory, below, _ in os.walk("/sys/fs/cgroup")
        for name in below
        if f"-{owner}-" in os.path.join(directory, name) and "sandbox_rl-" in os.path.join(directory, name)
    }


async def settles(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def out(sandbox: AgentSandbox, command: str, timeout: float = 60) -> str:
    result = await sandbox.exec(command, timeout=timeout)
    assert result.status is ExecStatus.OK, result
    return result.stdout.head.decode()


async def test_time_out_spares_what_earlier_commands_left_running(sandbox: AgentSandbox) -> None:
    await out(sandbox, "setsid sleep 301 >/dev/null 2>&1 & until pgrep -x sleep; do :; done")
    late = await sandbox.exec("(setsid setsid sleep 302 &) ; sleep 303", timeout=1)
    assert late.status is ExecStatus.TIMEOUT
    assert late.exit_code is None
    assert await out(sandbox, "pgrep -a sleep | cut -d' ' -f2-") == "sleep 301\n"


async def test_commands_run_side_by_side(sandbox: AgentSandbox) -> None:
    all_there = "until [ $(ls /tmp/begun-* | wc -l) = 4 ]; do sleep 0.05; done"
    commands = (f"touch /tmp/begun-{i}; {all_there}; echo {i}" for i in range(4))
    results = await asyncio.gather(*(out(sandbox, command) for command in commands))
    assert results == ["0\n", "1\n", "2\n", "3\n"]


async def test_a_command_is_in_no_argument_list(sandbox: AgentSandbox) -> None:
    listed = await out(sandbox, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '  # MARKER")
    assert "MARKER" not in listed


async def test_cancelled_command_is_ended(sandbox: AgentSandbox) -> None:
    task = asyncio.create_task(sandbox.exec("sleep 304", timeout=60))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await out(sandbox, "while pgrep -x sleep >/dev/null; do :; done; echo none") == "none\n"


async def test_background_jobs_never_block_the_next_command(sandbox: AgentSandbox) -> None:
    await sandbox.exec("f(){ f|f & }; f", timeout=60)
    assert await out(sandbox, "echo ok") == "ok\n"


async def test_flood_is_bounded_and_counted(sandbox: AgentSandbox) -> None:
    result = await sandbox.exec("head -c 300000000 /dev/zero; echo end >&2", timeout=60)
    assert result.status is ExecStatus.OK
    assert result.stdout.total_bytes == 300_000_000
    assert len(result.stdout.head) + len(result.stdout.tail) == SandboxLimits().output_bytes
    assert result.stderr.head == b"end\n"


async def test_endless_flood_is_ended(sandbox: AgentSandbox) -> None:
    result = await sandbox.exec("yes", timeout=60)
    assert result.status is ExecStatus.OUTPUT_LIMIT
    assert result.stdout.head.startswith(b"y\ny\n")


async def test_head_and_tail_are_the_true_ends(sandbox: AgentSandbox) -> None:
    result = await sandbox.exec("seq 1 1000000", timeout=60)
    text = "".join(f"{i}\n" for i in range(1, 1_000_001)).encode()
    assert result.stdout.total_bytes == len(text)
    assert text.startswith(result.stdout.head)
    assert text.endswith(result.stdout.tail)
    assert len(result.stdout.tail) == SandboxLimits().output_bytes // 2


async def test_agent_is_out_of_reach(sandbox: AgentSandbox) -> None:
    tried = await sandbox.exec(
        "for f in environ mem maps fd/3; do head -c1 /proc/1/$f >/dev/null 2>&1 && echo OPEN $f; done; "
        "ls /proc/1/root /proc/1/cwd >/dev/null 2>&1 && echo OPEN dir; kill -9 1; kill -INT 1; kill -STOP 1",
        timeout=60,
    )
    assert tried.stdout.head == b""
    assert await out(sandbox, "echo ok") == "ok\n"


async def test_memory_is_bounded(sandbox: AgentSandbox) -> None:
    result = await sandbox.exec("exec python3 -c 'b = bytearray(900 << 20)'", timeout=60)
    assert result.status is ExecStatus.OOM or result.exit_code == 1, result
    assert await out(sandbox, "echo ok") == "ok\n"


async def test_disk_and_inodes_are_bounded_together(sandbox: AgentSandbox) -> None:
    full = await out(
        sandbox,
        "for d in /testbed /tmp /dev/shm ~; do head -c 200M /dev/zero >$d/f 2>/dev/null; done; "
        "du -scm /testbed /tmp /dev/shm ~ | tail -1 | cut -f1; rm -f {/testbed,/tmp,/dev/shm,~}/f",
        60,
    )
    assert int(full) <= SandboxLimits().disk_mb + 1
    made = await out(
        sandbox,
        'cd /tmp; python3 -c \'\nn = 0\ntry:\n  while 1: open(str(n), "w").close(); n += 1\n'
        "except OSError: print(n)'",
        60,
    )
    assert int(made) <= SandboxLimits().inodes


async def test_spawner_killed_is_our_fault_and_another_one_starts() -> None:
    before = children()
    async with EmbeddedBackend() as backend:
        (spawner,) = (pid for pid in children() - before if _parent(pid) == os.getpid())
        async with backend.sandbox() as sandbox:
            os.kill(spawner, signal.SIGKILL)
            with pytest.raises(SandboxFault):
                await asyncio.wait_for(sandbox.exec("sleep 300", timeout=300), 60)
        async with backend.sandbox() as sandbox:
            assert await out(sandbox, "echo ok") == "ok\n"
    assert await settles(lambda: children() <= before)


async def test_waiting_sandboxes_hold_nothing_and_end_with_the_spawner() -> None:
    before = children()
    async with EmbeddedBackend() as backend:
        (spawner,) = (pid for pid in children() - before if _parent(pid) == os.getpid())
        async with backend.sandbox() as sandbox:
            await out(sandbox, "true")
            assert await settles(lambda: len(spares() - before) == 4)
            waiting = spares() - before
            for pid in waiting & {_parent(pid) for pid in waiting}:
                (first,) = (child for child in waiting if _parent(child) == pid)
                assert os.readlink(f"/proc/{first}/ns/mnt") != os.readlink(f"/proc/{spawner}/ns/mnt")
                assert os.readlink(f"/proc/{first}/ns/net") != os.readlink(f"/proc/{spawner}/ns/net")
                assert await settles(lambda first=first: kinds_held(first) == HELD), kinds_held(first)
            if backend.info.tier.endswith("cgroup"):
                assert len({tuple(_lines(f"/proc/{pid}/cgroup")) for pid in waiting}) == 2
            os.kill(spawner, signal.SIGKILL)
            assert await settles(lambda: not waiting & children() and not _alive(waiting))
    assert await settles(lambda: children() <= before)


HELD = ["null", "null", "pipe", "pipe", "proc", "seccomp", "socket"]
"""By a sandbox that waits: its own agent's socket, where it complains, its gate; nothing of another one."""


def kinds_held(pid: int) -> list[str]:
    """What kinds of files it has open."""
    held = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed since
            held.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return sorted(name.rpartition("/")[2].partition(":")[0] for name in held)


def _ended(pids: set[int]) -> bool:
    return not pids & children()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _alive(pids: set[int]) -> bool:
    return any(os.path.exists(f"/proc/{pid}") for pid in pids)


async def test_a_killed_waiting_sandbox_is_missed_by_nobody() -> None:
    before = children()
    async with EmbeddedBackend() as backend:
        for _ in range(3):
            assert await settles(lambda: len(spares() - before) == 4)
            killed = spares() - before
            for pid in killed:
                with contextlib.suppress(ProcessLookupError):  # the end of one of a pair is the other's
                    os.kill(pid, signal.SIGKILL)
            assert await settles(partial(_ended, killed))
            async with backend.sandbox() as sandbox:
                assert await out(sandbox, "echo ok; cut -d: -f3 /proc/self/cgroup | sort -u") == "ok\n/\n"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def test_cancelling_at_any_instant_leaves_nothing(backend: EmbeddedBackend) -> None:
    async with backend.sandbox():
        pass
    held = set(os.listdir("/proc/self/fd"))
    assert await settles(lambda: len(spares()) == 4)
    before, grouped = children(), groups(os.getpid())
    dice = random.Random(0)

    async def one() -> None:
        async with backend.sandbox({"a": b"x" * 10_000}) as sandbox:
            await sandbox.exec("sleep 5 & sleep 5", timeout=9)

    async def cancelled() -> None:
        task = asyncio.create_task(one())
        await asyncio.sleep(dice.random() * 0.4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for _ in range(5):
        await asyncio.gather(*(cancelled() for _ in range(8)))
    # Spares have been replaced by others: as many as before, and nothing else.
    assert await settles(lambda: children() - spares() <= before and len(children()) == len(before))
    assert await settles(lambda: len(groups(os.getpid())) == len(grouped))
    assert await settles(lambda: set(os.listdir("/proc/self/fd")) <= held)


FORKS = """
import os, sys, time
held = os.urandom(1 << 20) * int(sys.argv[1])
children = []
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        held = held + b"." if sys.argv[2] == "own" else held
        time.sleep(1.5)
        os._exit(0)
    children.append(pid)
print(sum(os.waitpid(pid, 0)[1] == 0 for pid in children))
"""


async def test_watchdog_counts_shared_memory_once() -> None:
    """60 forks that share 40 MiB use 40 MiB; 60 forks with 40 MiB each use more than there is."""
    async with EmbeddedBackend(settings=EmbeddedSettings(cgroups=False)) as backend:
        assert backend.info.tier == "namespaces+watchdog"
        async with backend.sandbox({"forks.py": FORKS.encode()}) as sandbox:
            assert await out(sandbox, "python3 documents/forks.py 40 shared", 60) == "60\n"
            result = await sandbox.exec("python3 documents/forks.py 40 own", timeout=60)
            assert result.stdout.head != b"60\n"
            assert await out(sandbox, "echo ok") == "ok\n"


async def test_paths_of_very_many_missing_parts_can_be_written(sandbox: AgentSandbox) -> None:
    await sandbox.write_file("/testbed/" + "d/" * 1900 + "f", b"x")
    assert await out(sandbox, "find d -type d | wc -l; find d -type f | wc -l") == "1900\n1\n"


OWNER = """
import asyncio, sys
from contextlib import AsyncExitStack
from sandbox_rl.sandboxes.embedded import EmbeddedBackend
async def main():
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(EmbeddedBackend())
        for _ in range(8):
            sandbox = await stack.enter_async_context(backend.sandbox())
            await sandbox.exec("setsid sleep 305 >/dev/null 2>&1 &", timeout=60)
        print("ready", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_owner_killed_leaves_nothing() -> None:
    owner = start_owner()
    assert owner.stdout is not None
    assert await asyncio.to_thread(owner.stdout.readline) == b"ready\n"
    owner.kill()
    owner.wait()
    owner.stdout.close()

    def left() -> list[str]:
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{entry}/cmdline").read_bytes() == b"sleep\x00305\x00":
                    found.append(entry)
        return found

    assert await settles(lambda: not left())
    assert await settles(lambda: not groups(owner.pid))


async def test_snapshot_branches_do_not_see_each_other(
    backend: EmbeddedBackend, sandbox: AgentSandbox
) -> None:
    await out(
        sandbox,
        "echo base >f; ln -s f link; mkdir -p d/e; chmod 700 f; echo deep >d/e/g; chmod 500 d; "
        "echo t >/tmp/t",
    )
    snapshot = await take_snapshot(sandbox)
    async with branch(backend, snapshot, 3) as branches:
        for number, copy in enumerate(branches):
            await out(copy, f"echo {number} >>link")
        texts = [await out(copy, "cat f d/e/g /tmp/t; stat -c %a f d; readlink link") for copy in branches]
    assert texts == [f"base\n{number}\ndeep\nt\n700\n500\nf\n" for number in range(3)]
    assert await out(sandbox, "cat f") == "base\n"


async def test_limits_that_are_unknown_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_gb"):
        EmbeddedSettings.model_validate({"limits": {"memory_gb": 1}})


async def test_setup_error_says_what_to_allow(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="unprivileged user namespaces"):
        async with EmbeddedBackend(settings=EmbeddedSettings(bwrap=fake_bwrap(tmp_path))):
            pass


async def test_shown_files_are_read_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data" / "x").write_text("shown")
    settings = EmbeddedSettings(read_only={tmp_path / "data": "/opt/data"}, environment={"MODE": "a{b}"})
    async with EmbeddedBackend(settings=settings) as backend:
        async with backend.sandbox() as sandbox:
            assert await out(sandbox, "cat /opt/data/x; echo $MODE") == "showna{b}\n"
            assert await out(sandbox, "echo y >/opt/data/x || echo refused") == "refused\n"


class FailsFirst:
    """A backend that cannot make its first sandboxes."""

    def __init__(self, backend: EmbeddedBackend, failures: int) -> None:
        self.backend = backend
        self.failures = failures
        self.attempts = 0

    @property
    def info(self) -> SandboxInfo:
        return self.backend.info

    @asynccontextmanager
    async def sandbox(
        self, files: Mapping[str, bytes] | None = None, *, timeout: float = 60.0
    ) -> AsyncIterator[AgentSandbox]:
        self.attempts += 1
        if self.attempts <= self.failures:
            raise SandboxFault("the daemon is away")
        async with self.backend.sandbox(files, timeout=timeout) as made:
            yield made

    async def __aenter__(self) -> "FailsFirst":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


FAST = PoolSettings(warm=0, backoff_s=0.01, longest_backoff_s=0.05, probe_interval_s=0.05, breaker_failures=3)


class TestPool:
    async def test_hands_out_warm_sandboxes_once(self, backend: EmbeddedBackend) -> None:
        async with SandboxPool(FailsFirst(backend, 0), settings=PoolSettings(warm=2)) as pool:
            assert await settles(lambda: pool.warm == 2)
            ids = set()
            for _ in range(4):
                async with pool.sandbox({"q": b"?"}) as sandbox:
                    ids.add(sandbox.id)
                    assert await out(sandbox, "cat documents/q; ls") == "?documents\n"
                    await out(sandbox, "echo used >mark")
            assert len(ids) == 4

    async def test_failures_are_retried(self, backend: EmbeddedBackend) -> None:
        flaky = FailsFirst(backend, 2)
        async with SandboxPool(flaky, settings=FAST) as pool, pool.sandbox(timeout=60) as sandbox:
            assert await out(sandbox, "echo ok") == "ok\n"
        assert flaky.attempts == 3

    async def test_breaker_lets_one_probe_at_a_time_through(self, backend: EmbeddedBackend) -> None:
        flaky = FailsFirst(backend, 10**9)
        async with SandboxPool(flaky, settings=FAST) as pool:

            async def ask() -> None:
                with pytest.raises(SandboxFault, match="the daemon is away"):
                    async with pool.sandbox(timeout=1):
                        pass

            await asyncio.gather(*(ask() for _ in range(20)))
            assert pool.broken
            assert flaky.attempts < 20 + 1 / FAST.probe_interval_s + 5
            flaky.failures = 0
            async with pool.sandbox(timeout=60) as sandbox:
                assert await out(sandbox, "echo back") == "back\n"
            assert not pool.broken

    async def test_back_pressure_waits_and_its_time_out_says_why(self, backend: EmbeddedBackend) -> None:
        settings = PoolSettings(warm=0, max_live=1)
        async with SandboxPool(FailsFirst(backend, 0), settings=settings) as pool:
            async with pool.sandbox():
                with pytest.raises(SandboxFault, match="max_live"):
                    async with pool.sandbox(timeout=0.1):
                        pass
                waiting = asyncio.create_task(self._use(pool))
                await asyncio.sleep(0.1)
                assert not waiting.done()
            await asyncio.wait_for(waiting, 60)

    async def _use(self, pool: SandboxPool) -> None:
        async with pool.sandbox() as sandbox:
            await out(sandbox, "true")

    async def test_cancelled_requests_give_their_place_back(self, backend: EmbeddedBackend) -> None:
        settings = PoolSettings(warm=0, max_live=2)
        async with SandboxPool(FailsFirst(backend, 0), settings=settings) as pool:
            for delay in (0.0, 0.005, 0.02, 0.05, 0.1):
                tasks = [asyncio.create_task(self._use(pool)) for _ in range(4)]
                await asyncio.sleep(delay)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait_for(asyncio.gather(self._use(pool), self._use(pool)), 60)


def made(limits: SandboxLimits) -> EmbeddedBackend:
    return EmbeddedBackend(EmbeddedSettings(limits=limits))


class Lacking(EmbeddedBackend):
    """A tier that says what it cannot keep."""

    @property
    def info(self) -> SandboxInfo:
        return replace(super().info, known_limits=("ISO-14",))


async def test_self_check_gives_a_row_for_each_case() -> None:
    some = [case for case in (*CONTROLS, *ALL_CASES) if case.id in ("ISO-13", "ISO-14", "IO-18")]
    rows = [row async for row in check_sandboxes(made, [*CONTROLS[:1], *some])]
    assert {row.case for row in rows} == {CONTROLS[0].id, "ISO-13", "ISO-14", "IO-18"}
    assert {row.verdict for row in rows} == {CheckVerdict.PASS}, rows


async def test_self_check_tells_a_broken_promise_from_a_known_limit() -> None:
    broken = replace(
        next(case for case in ALL_CASES if case.id == "ISO-14"), check=lambda _: "it did not hold"
    )
    (row,) = [row async for row in check_sandboxes(made, [broken])]
    assert (row.verdict, row.observed) == (CheckVerdict.FAIL, "it did not hold")
    (row,) = [row async for row in check_sandboxes(lambda _: Lacking(), [broken])]
    assert row.verdict is CheckVerdict.KNOWN_LIMIT


async def test_self_check_attacks_scoring_and_watches_the_event_loop() -> None:
    rows = [row async for row in check_scoring()]
    assert len(rows) > 4
    assert {(row.observed, row.verdict) for row in rows} == {("as required", CheckVerdict.PASS)}
    case, lag = [row async for row in check_sandboxes(made, CONTROLS[:1], lag=True)]
    assert (case.case, lag.case) == (CONTROLS[0].id, "LAG-01")


async def test_the_command_counts_all_its_rows_and_warns_of_no_attack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = await asyncio.to_thread(CliRunner().invoke, whole_app(), ["self-check", "--cases", "SCO-20"])
    assert done.exit_code == 0
    assert f"{ATTACKS}/{ATTACKS} SCO-20f" in done.stderr
    assert f"{ATTACKS} of {ATTACKS} as required" in done.stdout
    assert not caplog.records


async def test_a_full_store_stops_no_command_where_memory_cannot_be_charged() -> None:
    """There a command's text is no anonymous file, as commands get none either."""
    async with EmbeddedBackend(settings=EmbeddedSettings(cgroups=False)) as backend:
        async with backend.sandbox() as sandbox:
            assert "No such" not in await out(
                sandbox, "head -c 1G /dev/zero >/tmp/full; df /tmp | tail -1", 60
            )
            assert await out(sandbox, "echo on") == "on\n"
            long = await sandbox.exec(f"echo on #{'x' * 200_000}", timeout=60)
            assert (long.exit_code, b"No space left" in long.stderr.head) == (126, True)
            assert await out(sandbox, "rm /tmp/full*; echo on") == "on\n"
            assert await out(sandbox, f"echo on #{'x' * 200_000}") == "on\n"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """In a directory that sandboxes may look into."""
    tmp_path.chmod(0o755)
    file = tmp_path / "data.lock"
    file.write_text("here")
    return file


async def test_locks_in_shown_directories_hold_nobody_up_outside(lock: Path) -> None:
    settings = EmbeddedSettings(read_only={lock.parent: "/opt/data"})
    async with EmbeddedBackend(settings=settings) as backend, backend.sandbox() as sandbox:
        assert not any("advisory lock" in sentence for sentence in backend.info.lacks)
        await out(sandbox, "flock /opt/data/data.lock sleep 300 >/dev/null 2>&1 &")
        await out(sandbox, "while flock -n /opt/data/data.lock true; do sleep 0.02; done")  # until it is held
        fd = os.open(lock, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
        assert await out(sandbox, "touch /opt/data/x 2>/dev/null || echo refused") == "refused\n"


async def test_python_environment_of_the_host_can_be_used() -> None:
    async with EmbeddedBackend(settings=EmbeddedSettings(python_env=ENVIRONMENT)) as backend:
        async with backend.sandbox() as sandbox:
            shown = await out(
                sandbox, "python3 -c 'import sys, numpy; print(sys.version); print(numpy.__file__)'", 60
            )
            assert shown.splitlines()[0] == sys.version.splitlines()[0]
            assert "/opt/site-packages/numpy" in shown
            for key in ("sandbox_rl.errors", "reasoning_gym.factory"):
                said = await sandbox.exec(f"python3 -c 'import {key}'", timeout=60)
                assert said.exit_code == 1, "what makes tasks is no part of what is shown"
            assert await out(sandbox, "touch /opt/site-packages/x 2>/dev/null || echo refused") == "refused\n"


async def test_no_descriptor_left_is_reported_at_once() -> None:
    async with EmbeddedBackend() as backend:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        plugs: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    plugs.append(os.dup(0))
            with pytest.raises(SandboxFault, match="descriptor"):
                async with asyncio.timeout(60), backend.sandbox():
                    pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in plugs:
                os.close(fd)
        async with backend.sandbox() as sandbox:
            assert await out(sandbox, "echo ok") == "ok\n"
