"""A shipped fake: a small chat endpoint on this machine that says what it is told, faults included.

For tests and debugging of everything that calls an OpenAI-compatible server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Raw:
    """A reply to the byte.

    Args:
        delay_s: seconds before it is sent.
        hang_up: close the connection instead of (or in the middle of) replying.
        promised: content length to announce instead of the true one.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang_up: bool = False
    promised: int | None = None


Script = Callable[[Mapping[str, Any], int], Raw]
"""`(request body, number of the request from 0) -> reply`."""


def said(
    text: str | None = "",
    calls: Sequence[tuple[str, Any]] = (),
    *,
    ids: bool = True,
    usage: tuple[int, int] | None = (100, 10),
    delay_s: float = 0.0,
) -> Raw:
    """A chat completion: `calls` are (name, arguments); arguments that are no text become JSON."""
    made = [
        {
            **({"id": f"id-{index}"} if ids else {}),
            "type": "function",
            "function": {"name": name, "arguments": a if isinstance(a, str) else json.dumps(a)},
        }
        for index, (name, a) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text, **({"tool_calls": made} if made else {})}
    reason = "tool_calls" if made else "stop"
    body: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return Raw(json.dumps(body).encode(), delay_s=delay_s)


class FakeEndpoint:
    """An async context manager.

    Attributes:
        requests: the bodies received, in order.
        base_url: valid once entered.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.requests: list[Mapping[str, Any]] = []
        self.headers: list[str] = []
        self.base_url = ""

    async def __aenter__(self) -> FakeEndpoint:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(
            (int(h.split(":")[1]) for h in head.split("\r\n") if h.lower().startswith("content-length:")), 0
        )
        body = json.loads(await reader.readexactly(length))
        number = len(self.requests)
        self.requests.append(body)
        self.headers.append(head)
        found = head.split(" ")[1] == "/v1/chat/completions"
        reply = self._script(body, number) if found else Raw(b"no such page", 404)
        await asyncio.sleep(reply.delay_s)
        if reply.hang_up and not reply.body:
            return False
        announced = len(reply.body) if reply.promised is None else reply.promised
        lines = [
            f"HTTP/1.1 {reply.status} X",
            f"Content-Length: {announced}",
            "Content-Type: application/json",
        ]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + reply.body)
        await writer.drain()
        return not reply.hang_up
