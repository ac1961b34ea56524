"""The engine's frames around the agent's, cut anywhere."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_rl.sandboxes.agent import wire
from sandbox_rl.sandboxes.docker.transport import AttachedStream
from sandbox_rl.sandboxes.protocol import AgentChannel


def framed(stream: int, data: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


def attached(channel: AgentChannel) -> AttachedStream:
    """Once the engine has agreed."""
    stream = AttachedStream(channel)
    stream.data_received(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
    return stream


async def hello_of(pieces: list[bytes]) -> list[bytes]:
    channel = AgentChannel()
    stream = attached(channel)
    for piece in pieces:
        stream.data_received(piece)
    async with asyncio.timeout(60):
        return (await channel.hello).fields


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=20), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_output_arrives_whole_and_errors_are_dropped(greeting, noise, steps):
    message = wire.encode(0, wire.OK, [greeting])
    half = len(message) // 2
    sent = framed(1, message[:half]) + framed(2, noise) + framed(1, b"") + framed(1, message[half:])
    pieces, at = [], 0
    while at < len(sent):
        step = steps[len(pieces) % len(steps)]
        pieces.append(sent[at : at + step])
        at += step
    assert asyncio.run(hello_of(pieces)) == [greeting]


def test_an_agent_that_breaks_the_protocol_is_dropped():
    async def dead_after(data: bytes) -> bool:
        channel = AgentChannel()
        attached(channel).data_received(data)
        return channel.dead

    assert asyncio.run(dead_after(framed(1, b"\xff" * 8)))
    assert not asyncio.run(dead_after(framed(2, b"\xff" * 8)))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"101 UPGRADED", b"200 OK"]), st.integers(1, 60))
def test_the_engines_answer_comes_before_its_frames(status, step):
    message = wire.encode(0, wire.OK, [b"hello"])
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
    sent = head + framed(1, message)

    async def main() -> tuple[str, list[bytes]]:
        channel = AgentChannel()
        stream = AttachedStream(channel)
        for at in range(0, len(sent), step):
            stream.data_received(sent[at : at + step])
        async with asyncio.timeout(60):
            return await stream.upgraded, (await channel.hello).fields

    assert asyncio.run(main()) == ("", [b"hello"])


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b'HTTP/1.1 404 Not Found\r\n\r\n{"message": "No such\n container"}', "404 Not Found"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 2000"),
        (b"\xff" * (16 << 10), "\xff"),
        (b"HTTP/1.1 101", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_an_engine_that_gives_no_stream(sent, expected):
    async def main() -> str:
        stream = AttachedStream(AgentChannel())
        stream.data_received(sent)
        stream.connection_lost(None)
        async with asyncio.timeout(60):
            return await stream.upgraded

    said = asyncio.run(main())
    assert expected in said
    assert "\n" not in said
    assert len(said) < 600
