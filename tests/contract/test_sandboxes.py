"""The contract that every sandbox backend fulfils (`sandbox_rl/sandboxes/base.py`)."""

import asyncio
import os
import random
import time

import pytest

from sandbox_rl.errors import FileProblem, SandboxDead, SandboxFault, SandboxFileError
from sandbox_rl.sandboxes.base import ANSWER_FILE, INPUT_DIR, WORKING_DIR, Sandbox, SandboxBackend
from sandbox_rl.tools.toolbox import make_toolbox
from sandbox_rl.types import Answer, AnswerStatus, ExecResult, ExecStatus, Stream, ToolCall

from .conftest import LIMITS
from .core import check_core

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1 << 20


async def run(sandbox: Sandbox, command: str, timeout: float = 60.0, **more: str) -> ExecResult:
    return await asyncio.wait_for(sandbox.exec(command, timeout=timeout, **more), timeout + 10)


async def problem_of(awaitable: object) -> FileProblem:
    with pytest.raises(SandboxFileError) as caught:
        await asyncio.wait_for(awaitable, 60)  # type: ignore[arg-type]
    assert caught.value.path
    return caught.value.problem


class TestRepair:
    """What a policy does to its working directory it can repair with its own tools; it is never our fault."""

    @pytest.mark.parametrize(
        "damage",
        [
            f"chmod 000 {WORKING_DIR}",
            f"chmod -R a-rwx {WORKING_DIR}; chmod 000 /tmp",
            f"echo 1 > {ANSWER_FILE}; chmod 000 {ANSWER_FILE} {WORKING_DIR}",
            f"mkdir {ANSWER_FILE}",
            f"umask 777; echo 1 > {ANSWER_FILE}; mkdir {WORKING_DIR}/d",
            f"cd /; rm -rf {WORKING_DIR}; ln -s {WORKING_DIR} {WORKING_DIR}",
            f"cd /; mv {WORKING_DIR} /tmp/w; echo x > {WORKING_DIR}",
            "chmod 000 /",
        ],
    )
    async def test_a_policy_repairs_what_it_did(self, sandbox: Sandbox, damage: str) -> None:
        toolbox = make_toolbox()
        repair = (
            f"chmod -R u+rwx {WORKING_DIR} /tmp; "
            f"[ -d {WORKING_DIR} ] || {{ rm -f {WORKING_DIR}; mkdir {WORKING_DIR}; }}; "
            f"rm -rf {ANSWER_FILE}; echo 42 > {ANSWER_FILE}"
        )
        for command in (damage, "pwd", repair):
            call = ToolCall("execute_bash", {"command": command})
            observation = await asyncio.wait_for(toolbox.run(sandbox, call, timeout=60), 70)
            assert observation.failure is None
            assert observation.exit_code != 126
        view = ToolCall("str_replace_editor", {"command": "view", "path": ANSWER_FILE})
        assert "42" in (await toolbox.run(sandbox, view, timeout=60)).text
        assert await sandbox.read_answer() == Answer(AnswerStatus.OK, "42\n")


class TestExec:
    async def test_streams_are_separate_and_whole(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "printf out; printf err >&2")
        assert result.status is ExecStatus.OK
        assert (result.stdout, result.stderr) == (Stream(b"out", b"", 3), Stream(b"err", b"", 3))
        assert result.exit_code == 0
        assert not result.truncated

    @pytest.mark.parametrize("code", [0, 1, 2, 7, 42, 124, 126, 127, 128, 137, 255])
    async def test_exit_codes_arrive(self, sandbox: Sandbox, code: int) -> None:
        result = await run(sandbox, f"exit {code}")
        assert (result.status, result.exit_code) == (ExecStatus.OK, code)

    @pytest.mark.parametrize(("signal", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("INT", 2)])
    async def test_death_by_signal_follows_the_shell(
        self, sandbox: Sandbox, signal: str, number: int
    ) -> None:
        result = await run(sandbox, f"kill -{signal} $$; sleep 5")
        assert (result.status, result.exit_code) == (ExecStatus.OK, 128 + number)

    async def test_it_is_bash_in_the_working_directory(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, '[[ -n "$BASH_VERSION" ]] && pwd && echo <(true) | head -c 4')
        assert result.stdout.head == f"{WORKING_DIR}\n/dev".encode()

    async def test_cwd(self, sandbox: Sandbox) -> None:
        assert (await run(sandbox, "pwd", cwd="/tmp")).stdout.head == b"/tmp\n"

    @pytest.mark.parametrize(
        "cwd", ["/nowhere", "/etc/passwd", "/proc/self/fd/7", "relative", "", "/tmp/\0x", "/tmp/\ud800"]
    )
    async def test_odd_cwd_is_an_ordinary_failure(self, sandbox: Sandbox, cwd: str) -> None:
        result = await run(sandbox, "pwd", cwd=cwd)
        if result.status is ExecStatus.OK and result.exit_code == 0:
            assert result.stdout.head.startswith(
                b"/"
            )  # a relative one may be taken from the working directory
        else:
            assert result.status is ExecStatus.OK
            assert result.exit_code
            assert result.stderr.head.strip(), "the policy must be told what is wrong"
        assert (await run(sandbox, "echo ok")).stdout.head == b"ok\n"

    async def test_each_call_is_a_fresh_shell_over_the_same_files(self, sandbox: Sandbox) -> None:
        await run(sandbox, "x=1; export y=2; cd /tmp; f(){ :; }; echo kept >kept")
        result = await run(sandbox, 'echo "[$x$y]"; pwd; cat /tmp/kept; type f')
        assert result.stdout.head == f"[]\n{WORKING_DIR}\nkept\n".encode()

    async def test_stdin_is_at_its_end(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "cat; read x; echo rc=$?")
        assert (result.status, result.stdout.head) == (ExecStatus.OK, b"rc=1\n")

    @pytest.mark.parametrize("size", [100_000, 200_000, 2_000_000])
    async def test_huge_commands(self, sandbox: Sandbox, size: int) -> None:
        word = await run(sandbox, f"x='{'y' * size}'; printf %s \"$x\" | wc -c")
        assert word.stdout.head.strip() == str(size).encode()
        document = await run(sandbox, "wc -c <<'E'\n" + "z" * size + "\nE")
        assert document.stdout.head.strip() == str(size + 1).encode()

    @pytest.mark.parametrize("command", ["", " ", "\n", "# nothing", "\t\n;"])
    async def test_commands_that_do_nothing(self, sandbox: Sandbox, command: str) -> None:
        result = await run(sandbox, command)
        assert result.status is ExecStatus.OK
        assert result.exit_code is not None

    @pytest.mark.parametrize("command", ["echo a\0b", "echo \ud800", "\ufffe\uffff"])
    async def test_commands_that_are_no_text(self, sandbox: Sandbox, command: str) -> None:
        result = await run(sandbox, command)
        assert result.status is ExecStatus.OK
        assert (await run(sandbox, "echo ok")).stdout.head == b"ok\n"

    async def test_unicode_in_and_out(self, sandbox: Sandbox) -> None:
        assert (await run(sandbox, "printf 'é€😀\u200b'")).stdout.head == "é€😀\u200b".encode()

    async def test_at_most_the_cap_is_kept_and_the_count_is_true(self, sandbox: Sandbox) -> None:
        total = 3 * LIMITS.output_bytes + 17
        command = f"printf START; head -c {total - 8} /dev/zero | tr '\\0' m; printf END; printf short >&2"
        result = await run(sandbox, command)
        assert result.status is ExecStatus.OK
        assert result.stdout.total_bytes == total
        assert result.stdout.truncated
        assert 0 < len(result.stdout.head) + len(result.stdout.tail) <= LIMITS.output_bytes
        assert result.stdout.head.startswith(b"START")
        assert result.stdout.tail.endswith(b"mEND")
        assert result.stderr == Stream(b"short", b"", 5)

    async def test_timeout_keeps_what_came_before(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "echo before; echo err >&2; sleep 300; echo after", timeout=4.0)
        assert result.status is ExecStatus.TIMEOUT
        assert result.exit_code is None
        assert (result.stdout.head, result.stderr.head) == (b"before\n", b"err\n")
        assert 3.9 <= result.seconds < 300 / 2  # of what it would sleep

    async def test_timeout_spares_earlier_background_jobs(self, sandbox: Sandbox) -> None:
        await run(sandbox, "sleep 300 >/dev/null 2>&1 & echo $! >/tmp/job")
        assert (await run(sandbox, "sleep 60", timeout=0.5)).status is ExecStatus.TIMEOUT
        assert (await run(sandbox, "kill -0 $(cat /tmp/job) && echo alive")).stdout.head == b"alive\n"

    async def test_background_job_does_not_hold_the_call(self, sandbox: Sandbox) -> None:
        result = await run(sandbox, "sleep 300 & echo started")
        assert (result.status, result.stdout.head) == (ExecStatus.OK, b"started\n")  # in time

    async def test_costs_are_measured(self, sandbox: Sandbox) -> None:
        result = await run(
            sandbox, "python3 -c 'import time\nb=b\"x\"*(64<<20)\nwhile time.process_time()<0.5: pass'"
        )
        assert result.seconds >= 0.4
        assert 0.4 <= result.cpu_seconds <= 10
        assert 64 * MB <= result.peak_memory_bytes <= LIMITS.memory_mb * MB

    async def test_calls_at_the_same_time(self, sandbox: Sandbox) -> None:
        results = await asyncio.gather(*(run(sandbox, f"sleep 0.2; echo {n}") for n in range(10)))
        assert [r.stdout.head for r in results] == [f"{n}\n".encode() for n in range(10)]

    async def test_many_calls_in_a_row(self, sandbox: Sandbox) -> None:
        for n in range(100):
            assert (await run(sandbox, f"echo {n}")).stdout.head == f"{n}\n".encode()

    async def test_a_cancelled_call_leaves_a_working_sandbox(self, sandbox: Sandbox) -> None:
        for wait in (0.3, 0.05, 0.05, 0.05):
            task = asyncio.create_task(run(sandbox, "sleep 30; touch late"))
            await asyncio.sleep(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            result = await run(sandbox, "echo ok")  # which no late cancellation takes along
            assert (result.status, result.exit_code, result.stdout.head) == (ExecStatus.OK, 0, b"ok\n")


class TestFiles:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"no newline",
            b"a\n",
            b"tab\tx\r\nCRLF\r\n",
            bytes(range(256)) * 40,
            "é€😀\u200b\ufeff".encode(),
        ],
        ids=["empty", "no-newline", "newline", "crlf", "binary", "unicode"],
    )
    async def test_bytes_come_back_exactly(self, sandbox: Sandbox, data: bytes) -> None:
        await sandbox.write_file(f"{WORKING_DIR}/new/dir/f", data)
        assert await sandbox.read_file(f"{WORKING_DIR}/new/dir/f", max_bytes=MB) == data
        size = await run(sandbox, "wc -c <new/dir/f")
        assert int(size.stdout.head) == len(data)

    async def test_large_file(self, sandbox: Sandbox) -> None:
        data = random.Random(0).randbytes(5 * MB)
        await sandbox.write_file("/tmp/large", data)
        assert await sandbox.read_file("/tmp/large", max_bytes=8 * MB) == data

    async def test_replaces_whole_content(self, sandbox: Sandbox) -> None:
        path = f"{WORKING_DIR}/f"
        await sandbox.write_file(path, b"long content")
        await sandbox.write_file(path, b"x")
        assert await sandbox.read_file(path, max_bytes=10) == b"x"

    async def test_commands_see_and_own_written_files(self, sandbox: Sandbox) -> None:
        await sandbox.write_file(f"{WORKING_DIR}/s.sh", b"echo ran")
        assert (await run(sandbox, "bash s.sh; echo more >>s.sh && rm s.sh && echo gone")).stdout.head == (
            b"ran\ngone\n"
        )

    @pytest.mark.parametrize(
        "name", ["-rf", "a b", "q'uote", '"', "$(x)", "`x`", "new\nline", "é😀", "*", "~"]
    )
    async def test_odd_names(self, sandbox: Sandbox, name: str) -> None:
        path = f"{WORKING_DIR}/{name}"
        await sandbox.write_file(path, b"v")
        assert await sandbox.read_file(path, max_bytes=9) == b"v"
        assert (
            await run(sandbox, "find . -mindepth 1 -maxdepth 1 -printf x")
        ).stdout.head == b"xx"  # and the documents

    async def test_max_bytes_is_inclusive(self, sandbox: Sandbox) -> None:
        await sandbox.write_file("/tmp/f", b"12345")
        assert await sandbox.read_file("/tmp/f", max_bytes=5) == b"12345"
        assert await problem_of(sandbox.read_file("/tmp/f", max_bytes=4)) is FileProblem.TOO_LARGE

    @pytest.mark.parametrize(
        ("prepare", "path", "problems"),
        [
            ("", "/testbed/none", {FileProblem.MISSING}),
            ("", "/testbed/none/deeper", {FileProblem.MISSING}),
            ("", "/testbed", {FileProblem.IS_DIRECTORY}),
            ("", "/", {FileProblem.IS_DIRECTORY}),
            ("mkfifo p", "/testbed/p", {FileProblem.NOT_REGULAR}),
            ("ln -s /dev/zero z", "/testbed/z", {FileProblem.NOT_REGULAR}),
            ("ln -s loop loop", "/testbed/loop", {FileProblem.NOT_REGULAR, FileProblem.BAD_PATH}),
            ("ln -s /none dangling", "/testbed/dangling", {FileProblem.MISSING, FileProblem.NOT_REGULAR}),
            (
                "python3 -c 'import socket;socket.socket(1).bind(\"s\")'",
                "/testbed/s",
                {FileProblem.NOT_REGULAR},
            ),
            ("", "/dev/zero", {FileProblem.NOT_REGULAR}),
            ("echo x >f", "/testbed/f/below", {FileProblem.NOT_REGULAR, FileProblem.MISSING}),
            (
                "truncate -s 200M sparse",
                "/testbed/sparse",
                {FileProblem.TOO_LARGE},
            ),
            ("", "relative", {FileProblem.BAD_PATH}),
            ("", "", {FileProblem.BAD_PATH}),
            ("", "/testbed/" + "n" * 300, {FileProblem.BAD_PATH}),
            ("", "/" + "n/" * 3000, {FileProblem.BAD_PATH}),
            ("", "/testbed/nul\0", {FileProblem.BAD_PATH}),
            ("", "/testbed/\ud800", {FileProblem.BAD_PATH, FileProblem.MISSING}),
        ],
    )
    async def test_reading_what_cannot_be_read(
        self, sandbox: Sandbox, prepare: str, path: str, problems: set[FileProblem]
    ) -> None:
        await run(sandbox, prepare)
        assert await problem_of(sandbox.read_file(path, max_bytes=MB)) in problems

    @pytest.mark.parametrize(
        ("prepare", "path", "problems"),
        [
            ("", "/testbed", {FileProblem.IS_DIRECTORY}),
            ("mkfifo p", "/testbed/p", {FileProblem.NOT_REGULAR}),
            ("echo x >f", "/testbed/f/below", {FileProblem.NOT_REGULAR, FileProblem.EXISTS}),
            ("", "/usr/bin/adv", {FileProblem.PERMISSION}),
            ("", "/etc/passwd", {FileProblem.PERMISSION}),
            (
                "",
                "/proc/1/oom_score_adj",
                {FileProblem.PERMISSION, FileProblem.NOT_REGULAR, FileProblem.BAD_PATH},
            ),
            ("", "/nowhere-at-all/f", {FileProblem.PERMISSION}),
            ("", "relative", {FileProblem.BAD_PATH}),
            ("", "", {FileProblem.BAD_PATH}),
            ("", "/testbed/" + "n" * 300, {FileProblem.BAD_PATH}),
            ("", "/testbed/nul\0", {FileProblem.BAD_PATH}),
            ("", "/testbed/trailing/", {FileProblem.BAD_PATH, FileProblem.IS_DIRECTORY}),
        ],
    )
    async def test_writing_where_nothing_can_be_written(
        self, sandbox: Sandbox, prepare: str, path: str, problems: set[FileProblem]
    ) -> None:
        await run(sandbox, prepare)
        assert await problem_of(sandbox.write_file(path, b"x")) in problems

    async def test_no_space(self, sandbox: Sandbox) -> None:
        await run(sandbox, f"head -c {(LIMITS.disk_mb - 2) * MB} /dev/zero >fill; true")
        problem = await problem_of(sandbox.write_file(f"{WORKING_DIR}/more", b"x" * (8 * MB)))
        assert problem is FileProblem.NO_SPACE
        await run(sandbox, "rm -f fill more")
        await sandbox.write_file(f"{WORKING_DIR}/more", b"fits again")

    async def test_unreadable_file_is_typed(self, sandbox: Sandbox) -> None:
        await run(sandbox, "echo x >f; chmod 000 f")
        try:
            found: object = await sandbox.read_file(f"{WORKING_DIR}/f", max_bytes=9)
        except SandboxFileError as error:
            found = error.problem
        assert found in (b"x\n", FileProblem.PERMISSION)

    @pytest.mark.parametrize(
        "path", ["/proc/1/maps", "/proc/self/maps", "/proc/thread-self/status", "/tmp/link"]
    )
    async def test_the_agents_own_process_is_out_of_reach(self, sandbox: Sandbox, path: str) -> None:
        """It has what the commands are refused: its memory, its limits, its descriptors."""
        await sandbox.exec("ln -s /proc/1/maps /tmp/link", timeout=60)
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.read_file(path, max_bytes=1 << 20)
        assert caught.value.problem is FileProblem.PERMISSION

    async def test_nothing_of_the_agents_own_process_is_written_or_listed(self, sandbox: Sandbox) -> None:
        for path in ("/proc/1/mem", "/proc/self/oom_score_adj", "/proc/1/comm"):
            with pytest.raises(SandboxFileError):
                await sandbox.write_file(path, b"1000")
        for path in ("/proc/1/fd", "/proc/self/task/1"):
            with pytest.raises(SandboxFileError):
                await sandbox.list_dir(path, max_entries=10)
        result = await sandbox.exec("cat environ", timeout=60, cwd="/proc/self")
        assert result.exit_code == 126
        assert b"processor" in await sandbox.read_file("/proc/cpuinfo", max_bytes=1 << 20)


class TestListing:
    async def test_two_levels_sorted_without_hidden_ones(self, sandbox: Sandbox) -> None:
        await run(sandbox, "mkdir -p l/a/b/c l/.h; touch l/z l/a/y l/a/b/x l/.hidden l/a/.hidden; mkdir l/e")
        listed = await sandbox.list_dir(f"{WORKING_DIR}/l", max_entries=100)
        below = f"{WORKING_DIR}/l/"
        assert listed == tuple(sorted(below + name for name in ("a/", "a/b/", "a/y", "e/", "z")))

    async def test_empty_and_bounded(self, sandbox: Sandbox) -> None:
        await run(sandbox, "mkdir none many; cd many; touch $(seq 500)")
        assert await sandbox.list_dir(f"{WORKING_DIR}/none", max_entries=10) == ()
        assert len(await sandbox.list_dir(f"{WORKING_DIR}/many", max_entries=10)) == 10

    async def test_odd_entries_do_not_break_it(self, sandbox: Sandbox) -> None:
        await run(
            sandbox,
            "mkdir o; cd o; mkfifo p; ln -s / root; ln -s o o; touch $'\\xff\\xfe' $'a\\nb'; mkdir -m 0 x",
        )
        listed = await sandbox.list_dir(f"{WORKING_DIR}/o", max_entries=100)
        assert f"{WORKING_DIR}/o/p" in listed
        assert not any("/root/" in path.rstrip("/") for path in listed), "no link is followed"
        for path in listed:
            path.encode()

    @pytest.mark.parametrize(
        ("path", "problems"),
        [
            ("/testbed/none", {FileProblem.MISSING}),
            (f"{INPUT_DIR}/a.txt", {FileProblem.NOT_REGULAR}),
            ("relative", {FileProblem.BAD_PATH}),
            ("/nul\0", {FileProblem.BAD_PATH}),
        ],
    )
    async def test_problems(self, sandbox: Sandbox, path: str, problems: set[FileProblem]) -> None:
        assert await problem_of(sandbox.list_dir(path, max_entries=10)) in problems


class TestGetFiles:
    async def test_regular_files_only(self, sandbox: Sandbox) -> None:
        await run(
            sandbox, "mkdir -p g/d; echo 1 >g/a; echo 2 >g/d/b; ln -s /etc g/l; ln -s a g/m; mkfifo g/p"
        )
        found = await sandbox.get_files(f"{WORKING_DIR}/g", max_bytes=MB)
        assert dict(found) == {"a": b"1\n", "d/b": b"2\n"}

    async def test_bounds_and_problems(self, sandbox: Sandbox) -> None:
        await run(sandbox, "mkdir g; head -c 600 /dev/zero >g/a; head -c 600 /dev/zero >g/b")
        assert (
            await problem_of(sandbox.get_files(f"{WORKING_DIR}/g", max_bytes=1000)) is FileProblem.TOO_LARGE
        )
        assert len(await sandbox.get_files(f"{WORKING_DIR}/g", max_bytes=1200)) == 2
        assert await problem_of(sandbox.get_files("/testbed/none", max_bytes=10)) is FileProblem.MISSING

    async def test_hostile_names_stay_relative(self, sandbox: Sandbox) -> None:
        await run(sandbox, "mkdir g; touch g/$'\\xff' g/'..x' g/'a\\b' g/$'n\\nl'")
        for name in await sandbox.get_files(f"{WORKING_DIR}/g", max_bytes=1000):
            assert not name.startswith("/")
            assert ".." not in name.split("/")


class TestInput:
    async def test_files_are_there(self, sandbox: Sandbox) -> None:
        assert await sandbox.read_file(f"{INPUT_DIR}/a.txt", max_bytes=99) == b"alpha\n"
        result = await run(sandbox, f"cat {INPUT_DIR}/deep/er/b.bin | wc -c; ls {INPUT_DIR}")
        assert result.stdout.head.split() == [b"256", b"a.txt", b"deep"]

    @pytest.mark.parametrize(
        "name",
        [
            "../x",
            "../../etc/cron.d/x",
            "/etc/passwd",
            "a/../../b",
            "a/..",
            "",
            ".",
            "x\0y",
            "n" * 300,
            "d/" * 3000 + "x",
            "a//../b",
            "\ud800",
        ],
    )
    async def test_bad_names_are_refused(self, backend: SandboxBackend, name: str) -> None:
        with pytest.raises(ValueError, match=r"."):
            async with backend.sandbox({name: b"x"}):
                pass

    async def test_names_that_contradict_each_other(self, backend: SandboxBackend) -> None:
        with pytest.raises(ValueError, match=r"."):
            async with backend.sandbox({"a": b"x", "a/b": b"y"}):
                pass

    async def test_many_and_large_files(self, backend: SandboxBackend) -> None:
        files = {f"d{i % 7}/f{i}": b"%d" % i for i in range(500)} | {"big": b"x" * (20 * MB)}
        async with backend.sandbox(files) as made:
            counted = await run(made, f"find {INPUT_DIR} -type f | wc -l; wc -c <{INPUT_DIR}/big")
            assert counted.stdout.head.split() == [b"501", str(20 * MB).encode()]


class TestAnswer:
    @pytest.mark.parametrize(
        ("command", "answer"),
        [
            (f"printf 42 >{ANSWER_FILE}", Answer(AnswerStatus.OK, "42")),
            (f"printf ' 4 2\\r\\n\\n' >{ANSWER_FILE}", Answer(AnswerStatus.OK, " 4 2\r\n\n")),
            (f"printf '\\xef\\xbb\\xbfx' >{ANSWER_FILE}", Answer(AnswerStatus.OK, "x")),
            (f": >{ANSWER_FILE}", Answer(AnswerStatus.OK, "")),
            (f"head -c 65536 /dev/zero | tr '\\0' 1 >{ANSWER_FILE}", Answer(AnswerStatus.OK, "1" * 65536)),
            ("true", Answer(AnswerStatus.MISSING)),
            (f"mkdir {ANSWER_FILE}", Answer(AnswerStatus.NOT_REGULAR)),
            (f"mkfifo {ANSWER_FILE}", Answer(AnswerStatus.NOT_REGULAR)),
            (f"ln -s /etc/passwd {ANSWER_FILE}", Answer(AnswerStatus.NOT_REGULAR)),
            (f"head -c 65537 /dev/zero >{ANSWER_FILE}", Answer(AnswerStatus.TOO_LARGE)),
            (f"printf '\\xff' >{ANSWER_FILE}", Answer(AnswerStatus.UNDECODABLE)),
            (f"printf 'a\\0b' >{ANSWER_FILE}", Answer(AnswerStatus.UNDECODABLE)),
            (f"printf '\\xed\\xa0\\x80' >{ANSWER_FILE}", Answer(AnswerStatus.UNDECODABLE)),
        ],
    )
    async def test_status(self, sandbox: Sandbox, command: str, answer: Answer) -> None:
        await run(sandbox, command)
        assert await sandbox.read_answer() == answer

    async def test_nothing_runs_any_more_when_it_is_read(self, sandbox: Sandbox) -> None:
        await run(
            sandbox,
            f"(setsid sh -c 'while :; do echo $((i=i+1)) >t; mv t {ANSWER_FILE}; done' "
            f">/dev/null 2>&1 &); until [ -e {ANSWER_FILE} ]; do sleep 0.02; done",
        )
        answer = await sandbox.read_answer()
        assert answer.status is AnswerStatus.OK
        assert int(answer.text) > 0

    async def test_other_path_and_cap(self, sandbox: Sandbox) -> None:
        await run(sandbox, "printf 12345 >/tmp/other")
        assert await sandbox.read_answer("/tmp/other", max_bytes=4) == Answer(AnswerStatus.TOO_LARGE)

    async def test_under_a_running_command(self, sandbox: Sandbox) -> None:
        task = asyncio.create_task(
            run(sandbox, f"printf 1 >{ANSWER_FILE}; sleep 300; printf 2 >{ANSWER_FILE}", timeout=300)
        )
        await run(sandbox, f"until [ -s {ANSWER_FILE} ]; do sleep 0.02; done")
        assert await sandbox.read_answer() == Answer(AnswerStatus.OK, "1")
        result = await asyncio.wait_for(task, 60)
        assert result.status in (ExecStatus.SANDBOX_DEAD, ExecStatus.OK)


class TestForwarding:
    async def test_the_core(self, backend: SandboxBackend) -> None:
        await check_core(backend)


class TestLife:
    async def test_ids_are_unique_and_safe(
        self, backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "time", lambda: 1e9)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        random.seed(0)
        async with backend.sandbox() as a:
            random.seed(0)
            async with backend.sandbox() as b:
                assert a.id != b.id
                assert all(c.isalnum() or c in "-_." for c in a.id + b.id)
                await run(a, "echo A >mine")
                assert (await run(b, "cat mine")).exit_code == 1

    async def test_use_after_close(self, backend: SandboxBackend) -> None:
        context = backend.sandbox()
        sandbox = await context.__aenter__()
        await context.__aexit__(None, None, None)
        result = await run(sandbox, "true")
        assert result.status is ExecStatus.SANDBOX_DEAD
        assert result.exit_code is None
        with pytest.raises(SandboxDead):
            await sandbox.read_file("/tmp/x", max_bytes=1)
        with pytest.raises(SandboxDead):
            await sandbox.write_file("/tmp/x", b"")
        with pytest.raises(SandboxDead):
            await sandbox.list_dir("/tmp", max_entries=1)
        with pytest.raises(SandboxDead):
            await sandbox.get_files("/tmp", max_bytes=1)
        assert await sandbox.read_answer() == Answer(AnswerStatus.MISSING)

    async def test_closing_under_a_running_command(self, backend: SandboxBackend) -> None:
        async with backend.sandbox() as sandbox:
            task = asyncio.create_task(run(sandbox, "sleep 300", timeout=300))
            await asyncio.sleep(0.3)
        assert (await asyncio.wait_for(task, 60)).status is ExecStatus.SANDBOX_DEAD

    async def test_an_error_in_the_body_passes_through(self, backend: SandboxBackend) -> None:
        with pytest.raises(ZeroDivisionError):
            async with backend.sandbox() as sandbox:
                raise ZeroDivisionError
        assert (await run(sandbox, "true")).status is ExecStatus.SANDBOX_DEAD

    async def test_sandboxes_outlive_others(self, backend: SandboxBackend) -> None:
        async with backend.sandbox() as long_lived:
            for _ in range(5):
                async with backend.sandbox() as other:
                    await run(other, "kill -9 -1")
            assert (await run(long_lived, "echo ok")).stdout.head == b"ok\n"

    async def test_info_says_what_runs(self, backend: SandboxBackend) -> None:
        info = backend.info
        assert info.backend
        assert info.tier
        assert all(sentence.strip() for sentence in info.lacks)

    async def test_creation_within_no_time_is_a_fault_or_succeeds(self, backend: SandboxBackend) -> None:
        try:
            async with backend.sandbox(timeout=0.0001) as sandbox:
                assert (await run(sandbox, "echo ok")).stdout.head == b"ok\n"
        except SandboxFault:
            pass  # the one permitted way to say no
        async with backend.sandbox() as sandbox:
            assert (await run(sandbox, "echo ok")).stdout.head == b"ok\n"
