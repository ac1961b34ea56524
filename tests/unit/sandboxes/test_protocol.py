"""The host's end of the protocol against agents that lie."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_rl.errors import SandboxDead, SandboxFileError
from sandbox_rl.sandboxes.agent import wire
from sandbox_rl.sandboxes.agent_sandbox import AgentSandbox
from sandbox_rl.sandboxes.base import SandboxLimits
from sandbox_rl.sandboxes.protocol import AgentChannel, Reply, exec_result
from sandbox_rl.types import AnswerStatus, ExecStatus

LIMITS = SandboxLimits(output_bytes=1024)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def host_is_well() -> None:
    return None


@asynccontextmanager
async def hostile() -> AsyncIterator[tuple[AgentSandbox, AgentChannel, socket.socket]]:
    """A sandbox whose agent is the test, which writes into the returned socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, channel = await asyncio.get_running_loop().create_connection(AgentChannel, sock=ours)
    try:
        yield AgentSandbox("x", channel, LIMITS, check_host=host_is_well), channel, theirs
    finally:
        theirs.close()
        channel.close()


def frame(request: int, code: int, *fields: bytes) -> bytes:
    return wire.encode(request, code, fields)


def ran(stdout: bytes = b"", total: int | None = None, status: int = 0) -> list[bytes]:
    streams = [stdout, b"", wire.number(len(stdout) if total is None else total), b"", b"", b"0"]
    return [b"0", wire.number(status), b"5", b"4", b"3", *streams]


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.lists(st.binary(max_size=200), max_size=20))
def test_frames_round_trip(request: int, code: int, fields: list[bytes]) -> None:
    data = wire.encode(request, code, fields)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert wire.decode(data[4:]) == (request, code, fields)


@given(st.binary(max_size=400))
def test_any_body_decodes_or_is_refused(body: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        request, code, fields = wire.decode(body)
        assert wire.encode(request, code, fields)[4:] == body


@given(st.binary(max_size=30))
def test_numbers_are_bounded(field: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        assert 0 <= wire.integer(field, 0, 99) <= 99


@QUICK
@given(st.lists(st.binary(max_size=300), max_size=14), st.integers(0, 255))
def test_any_reply_to_a_command_is_a_result_or_refused(fields: list[bytes], code: int) -> None:
    with contextlib.suppress(wire.WireError):
        result = exec_result(Reply(code, fields), cap=64, elapsed=1.0)
        assert len(result.stdout.head) + len(result.stdout.tail) <= 64
        assert result.seconds <= 1.0


@pytest.mark.parametrize(
    "fields",
    [
        ran(b"x" * 65),
        ran(b"xx", total=1),
        ran(status=70_000),
        ran()[:-1],
        [*ran(), b""],
        [b"9", *ran()[1:]],
        [b"-1", *ran()[1:]],
    ],
)
def test_lies_about_a_command_are_refused(fields: list[bytes]) -> None:
    with pytest.raises(wire.WireError):
        exec_result(Reply(wire.OK, fields), cap=64, elapsed=1.0)


def test_an_honest_reply_is_believed() -> None:
    result = exec_result(Reply(wire.OK, ran(b"hi", status=3 << 8)), cap=64, elapsed=1.0)
    assert (result.status, result.exit_code, result.stdout.head) == (ExecStatus.OK, 3, b"hi")
    assert exec_result(Reply(wire.OK, ran(status=9)), cap=64, elapsed=1.0).exit_code == 137


@QUICK
@given(data=st.binary(min_size=1, max_size=600))
async def test_bytes_of_any_kind_never_raise_anything_else(data: bytes) -> None:
    async with hostile() as (sandbox, _, agent):
        agent.sendall(data)
        agent.close()
        result = await asyncio.wait_for(sandbox.exec("true", timeout=60), 70)
        assert result.status is ExecStatus.SANDBOX_DEAD
        assert (await sandbox.read_answer()).status is AnswerStatus.MISSING
        with pytest.raises(SandboxDead):
            await sandbox.read_file("/x", max_bytes=10)


async def test_a_frame_that_claims_to_be_huge_ends_the_sandbox_before_it_arrives() -> None:
    async with hostile() as (sandbox, channel, agent):
        agent.sendall(frame(0, wire.OK) + (0xFFFF_FFFF).to_bytes(4, "big") + b"x" * 1000)
        result = await asyncio.wait_for(sandbox.exec("true", timeout=300), 60)
        assert result.status is ExecStatus.SANDBOX_DEAD
        assert "4294967295 bytes" in channel.why_dead


async def test_a_reply_that_nobody_waits_for_ends_the_sandbox() -> None:
    async with hostile() as (_, channel, agent):
        agent.sendall(frame(0, wire.OK) + frame(77, wire.OK))
        await channel.hello
        await asyncio.sleep(0.01)
        assert channel.dead


async def test_a_second_reply_to_one_request_ends_the_sandbox() -> None:
    async with hostile() as (sandbox, channel, agent):
        agent.sendall(frame(0, wire.OK))
        await channel.hello
        asked = asyncio.create_task(sandbox.read_file("/x", max_bytes=10))
        await asyncio.sleep(0.01)
        agent.sendall(frame(1, wire.OK, b"v") * 2)
        assert await asked == b"v"
        await asyncio.sleep(0.01)
        assert channel.dead


async def test_content_beyond_what_was_asked_for_is_refused() -> None:
    async with hostile() as (sandbox, channel, agent):
        agent.sendall(frame(0, wire.OK))
        await channel.hello
        asked = asyncio.create_task(sandbox.read_answer(max_bytes=10))
        await asyncio.sleep(0.01)
        agent.sendall(frame(1, wire.OK, wire.number(wire.FOUND), b"v" * 11))
        assert (await asked).status is AnswerStatus.MISSING
        assert channel.dead


async def test_a_silent_agent_costs_its_deadline_and_no_more() -> None:
    async with hostile() as (_, channel, agent):
        agent.sendall(frame(0, wire.OK))
        await channel.hello
        with pytest.raises(SandboxDead, match="no reply within"):
            await channel.request(wire.PING, (), timeout=0.05)


async def test_a_channel_that_was_given_up_before_it_was_connected_drops_the_connection() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    channel = AgentChannel()
    channel.close()
    await asyncio.get_running_loop().create_connection(lambda: channel, sock=ours)
    with theirs:
        theirs.settimeout(60)
        assert await asyncio.to_thread(theirs.recv, 1) == b""


async def test_problems_that_do_not_exist_are_refused() -> None:
    async with hostile() as (sandbox, channel, agent):
        agent.sendall(frame(0, wire.OK))
        await channel.hello
        asked = asyncio.create_task(sandbox.read_file("/x", max_bytes=10))
        await asyncio.sleep(0.01)
        agent.sendall(frame(1, wire.FILE_ERROR, b"missing", b"d\xff"))
        with pytest.raises(SandboxFileError):
            await asked
        asked = asyncio.create_task(sandbox.read_file("/x", max_bytes=10))
        await asyncio.sleep(0.01)
        agent.sendall(frame(2, wire.FILE_ERROR, b"on fire", b""))
        with pytest.raises(SandboxDead, match="on fire"):
            await asked
