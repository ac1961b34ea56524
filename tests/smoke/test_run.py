"""`sandbox-rl run` as a person meets it: real sandboxes, a real endpoint, a real terminal, a real model."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from sandbox_rl.journal import trajectory_from_record
from sandbox_rl.policies.fake_endpoint import FakeEndpoint, said
from sandbox_rl.training.tiny import tiny_config, tiny_tokenizer
from sandbox_rl.types import StopReason
from tests import prepared
from tests.processes import commands, reserved_port

pytestmark = pytest.mark.slow

SUBMIT = ("submit", {})
PROCESS = "3141.59265"
"""Seconds of a sleep that nobody else sleeps."""


def bash(command):
    return ("execute_bash", {"command": command})


def by_turn(*replies):
    """Replies by the number of assistant turns so far, so that a repeated request gets the same."""

    def script(body, _):
        turn = sum(m["role"] == "assistant" for m in body["messages"])
        return replies[min(turn, len(replies) - 1)]

    return script


def command(*arguments):
    return [sys.executable, "-m", "sandbox_rl.cli", "run", *map(str, arguments)]


def environment():
    return os.environ | {"COLUMNS": "100"}


@contextmanager
def started(*arguments, cwd, stdin=subprocess.DEVNULL):
    """The command in a session of its own; killed at the end if it is still there."""
    process = prepared.Popen(
        command(*arguments),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


async def ended(process, timeout=250):
    out, err = await asyncio.to_thread(process.communicate, timeout=timeout)
    assert "Traceback" not in err
    return process.returncode, out, err


def sleepers():
    """Processes of this machine that sleep as long as the test's."""
    return [pid for pid, words in commands().items() if PROCESS in words]


async def until(condition, timeout=200.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


async def test_a_question_on_files_over_an_endpoint(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("fourteen\n")
    (tmp_path / "in" / "sub" / "b.txt").write_text("x")
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "out" / "trajectory.json").write_text("mine")
    script = by_turn(
        said("Look first.", [bash("cat documents/a.txt; printf '\\033[2Jred\\n'")]),
        said(
            "",
            [
                bash(
                    "echo 14 > answer.txt; mkdir -p t; echo x > t/new.csv; echo theirs > mine.txt; "
                    "ln -s /etc/passwd leak; mkfifo pipe; touch .hidden; echo changed > documents/sub/b.txt"
                ),
                SUBMIT,
            ],
        ),
    )
    async with FakeEndpoint(script) as endpoint:
        arguments = ("How many?", "--model", "m", "--base-url", endpoint.base_url)
        with started(*arguments, "--input", "in", "--output", "out", cwd=tmp_path) as process:
            code, out, err = await ended(process)
    assert (code, out) == (0, "14\n"), err
    assert "Not copied in: link: a link" in err
    assert "Look first." in err
    assert "fourteen" in err
    assert "\x1b" not in err
    assert "Not copied out: mine.txt: exists already, kept as it is" in err
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {
        *("mine.txt", "trajectory.json", "answer.txt"),
        *("t/new.csv", "documents/sub/b.txt", "trajectory-2.json"),
    }
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "in" / "sub" / "b.txt").read_text() == "x"
    record = json.loads((tmp_path / "out" / "trajectory-2.json").read_text())
    trajectory = trajectory_from_record(record)
    assert (trajectory.stop, trajectory.answer.text, len(trajectory.turns)) == (
        StopReason.SUBMITTED,
        "14\n",
        2,
    )
    assert (record["question"], record["model"], record["settings"]["episode"]["max_turns"]) == (
        "How many?",
        "m",
        50,
    )
    assert record["messages"][0]["role"] == "system"


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (None, None),
        ("full", "Network: the sandbox may reach every public host"),
        ("example.org,example.com:8443", "Network: the sandbox may reach example.org, example.com:8443"),
    ],
)
async def test_a_network_only_where_it_is_asked_for(tmp_path, network, told):
    """A sandbox with a network has a proxy; what that lets through is tested with the sandboxes."""
    script = by_turn(said("", [bash('echo "proxy: ${https_proxy:-none}" > answer.txt'), SUBMIT]))
    async with FakeEndpoint(script) as endpoint:
        arguments = ["q", "--model", "m", "--base-url", endpoint.base_url]
        arguments += [] if network is None else ["--network", network]
        with started(*arguments, cwd=tmp_path) as process:
            code, out, err = await ended(process)
    assert code == 0, err
    assert (out == "proxy: none\n") is (network is None)
    assert told in err if told else "Network:" not in err


async def test_ctrl_c_in_the_middle_of_a_command(tmp_path):
    script = by_turn(
        said("", [bash("echo part > half.txt")]), said("", [bash(f"sleep {PROCESS} & sleep {PROCESS}")])
    )
    async with FakeEndpoint(script) as endpoint:
        arguments = ("Wait.", "--model", "m", "--base-url", endpoint.base_url)
        with started(*arguments, cwd=tmp_path) as process:
            await until(lambda: len(sleepers()) >= 2)
            os.killpg(process.pid, signal.SIGINT)
            code, out, err = await ended(process)
    assert (code, out) == (130, ""), err
    assert err.splitlines()[-1] == "Interrupted; the sandbox is gone."
    assert "--resume" not in err
    await until(lambda: not sleepers())
    run = tmp_path / "runs" / "assistant"
    assert (run / "half.txt").read_text() == "part\n"
    record = json.loads((run / "trajectory.json").read_text())
    assert (record["interrupted"], record["fault"], len(record["turns"])) == (True, "interrupted", 2)


async def test_a_budget_a_missing_answer_and_a_fault_end_with_3(tmp_path):
    async with FakeEndpoint(by_turn(said("I do not know."))) as endpoint:
        arguments = ("Why?", "episode.max_turns=2", "--model", "m", "--base-url", endpoint.base_url)
        with started(*arguments, cwd=tmp_path) as process:
            code, out, err = await ended(process)
    assert (code, out) == (3, "")
    assert "all turns are used up" in err
    assert "There is no answer: answer.txt is missing." in err
    arguments = (*arguments[:-1], f"http://127.0.0.1:{reserved_port()}/v1")  # nobody listens there
    with started(*arguments, cwd=tmp_path) as process:
        code, out, err = await ended(process)
    assert (code, out) == (3, "")
    assert "Error: EngineFault: endpoint http://127.0.0.1" in err
    assert (tmp_path / "runs" / "assistant-2" / "trajectory.json").is_file()


async def test_a_conversation_in_a_terminal(tmp_path):
    script = by_turn(
        said("", [bash("echo 42 > answer.txt; echo state > kept"), SUBMIT]),
        said("Because of the question."),
        said("", [bash("cat kept; expr 42 + 1 > answer.txt"), SUBMIT]),
    )
    master, slave = pty.openpty()
    seen = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(master, lambda: seen.extend(os.read(master, 65_536)))
    try:
        async with FakeEndpoint(script) as endpoint:
            process = prepared.Popen(
                command("-i", "--model", "m", "--base-url", endpoint.base_url, "--output", "out"),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                cwd=tmp_path,
                env=environment() | {"TERM": "xterm"},
            )
            try:
                for number, text in enumerate((b"What is it?\n", b"Why?\n", b"Again.\n", b"\x04"), start=1):
                    await until(lambda number=number: seen.count(b"> ") >= number)
                    os.write(master, text)
                assert await asyncio.to_thread(process.wait, 200) == 0
            finally:
                process.kill()
                process.wait()
            requests = endpoint.requests
    finally:
        loop.remove_reader(master)
        os.close(slave)
        os.close(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)", "", seen.decode())
    lines = [line.strip() for line in plain.split("\r\n")]
    assert [m["content"] for m in requests[2]["messages"] if m["role"] == "user"][1:] == ["Why?", "Again."]
    assert lines.index("Because of the question.") < lines.index("state") < lines.index("43")
    assert (tmp_path / "out" / "answer.txt").read_text() == "43\n"
    assert (tmp_path / "out" / "kept").read_text() == "state\n"


async def test_ctrl_c_while_the_user_thinks(tmp_path):
    script = by_turn(said("", [bash("echo 42 > answer.txt"), SUBMIT]))
    async with FakeEndpoint(script) as endpoint:
        arguments = ("What?", "-i", "--model", "m", "--base-url", endpoint.base_url, "--output", "out")
        with started(*arguments, cwd=tmp_path, stdin=subprocess.PIPE) as process:  # open and silent
            seen = ""
            while not seen.endswith("\n> "):
                read = await asyncio.to_thread(process.stderr.read, 1)
                assert read, seen
                seen += read
            process.send_signal(signal.SIGINT)
            err = await asyncio.to_thread(process.stderr.read)
            assert await asyncio.to_thread(process.wait, 15) == 130
    assert err.splitlines()[-1] == "Interrupted; the sandbox is gone."
    assert (tmp_path / "out" / "answer.txt").read_text() == "42\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that says anything, whose context holds the prompt."""
    from transformers import Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    config.max_position_embeddings = 32_768
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


async def test_a_model_in_this_process(tmp_path, model):
    overrides = ("episode.max_turns=2", "episode.turn_tokens=16")
    arguments = ("What?", *overrides, "--model", model, "--output", "out")
    with started(*arguments, cwd=tmp_path) as process:
        code, out, err = await ended(process)
    assert (code, out) == (3, ""), err
    record = json.loads((tmp_path / "out" / "trajectory.json").read_text())
    trajectory = trajectory_from_record(record)
    assert trajectory.stop is StopReason.MAX_TURNS
    assert [0 < len(turn.action.token_ids) <= 16 for turn in trajectory.turns] == [True, True]
    assert trajectory.logprobs is not None


async def test_ctrl_c_while_a_model_in_this_process_thinks(tmp_path, model):
    arguments = ("What?", "episode.turn_tokens=20000", "--model", model, "--output", "out")
    with started(*arguments, cwd=tmp_path) as process:
        while "turn 1" not in await asyncio.to_thread(process.stderr.readline):
            assert process.poll() is None
        await asyncio.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        code, _, err = await ended(process)
    assert code == 130
    assert err.splitlines()[-1] == "Interrupted; the sandbox is gone."
    assert (tmp_path / "out" / "trajectory.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "m"], "QUESTION is missing"),
        (["q"], "--model is missing"),
        (["q", "--base-url", "http://x/v1"], "--base-url: given without --model"),
        (["q", "--model", "m", "--base-url", "x"], "--base-url: 'x', expected http://HOST:PORT/v1"),
        (["q", "--model", "m", "--base-url", "http://x/v1", "--input", "none"], "--input none"),
        (["q", "--model", "m", "--base-url", "http://x/v1", "--output", "file"], "--output"),
        (["q", "--model", "m", "--base-url", "http://x/v1", "--domain", "maths"], "did you mean 'math'"),
        (["q", "--model", "m", "--recipe", "none.yaml"], "none.yaml"),
        (["q", "--model", "m", "--network", "http://x"], "'http://x' is no host"),
        (["q", "--model", "m", "episode.max_turn=3"], "did you mean 'max_turns'"),
    ],
)
def test_what_cannot_run_is_reported_in_one_line(tmp_path, arguments, expected):
    (tmp_path / "file").write_text("")
    done = prepared.run(command(*arguments), cwd=tmp_path, env=environment())
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
