"""The engine's frames around the agent's, cut anywhere."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_rl.sandboxes.agent import wire
from sandbox_rl.sandboxes.docker_stream import AttachedStream
from sandbox_rl.sandboxes.protocol import AgentChannel


def framed(stream: int, data: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


async def hello_of(pieces: list[bytes]) -> list[bytes]:
    channel = AgentChannel()
    stream = AttachedStream(channel)
    for piece in pieces:
        stream.data_received(piece)
    async with asyncio.timeout(1):
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
        AttachedStream(channel).data_received(data)
        return channel.dead

    assert asyncio.run(dead_after(framed(1, b"\xff" * 8)))
    assert not asyncio.run(dead_after(framed(2, b"\xff" * 8)))
