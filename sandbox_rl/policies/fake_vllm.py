"""A server that speaks vLLM's completions route without a model: for tests, benchmarks and dry runs.

It repeats the last token id of the prompt until `max_tokens`, or ends at once with the first stop id, after
`delay_s`. What should go wrong is queued in `faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

__all__ = ["FakeVLLM"]

Fault = Callable[[dict[str, Any]], web.StreamResponse | None]
"""Gets the request's body; answers in the server's place, or hangs up by returning None."""


@dataclass
class FakeVLLM:
    """What the fake was asked and how it answers.

    Args:
        delay_s: before each answer, as if sampling.
        ends: whether it samples a stop id last.
        max_model_len: what it says about its context.
    """

    delay_s: float = 0.0
    ends: bool = True
    max_model_len: int = 65_536
    version: str = "0.31.0"
    requests: list[dict[str, Any]] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)

    @asynccontextmanager
    async def serving(self, socket: Path) -> AsyncIterator[None]:
        """Listen on a unix socket while open."""
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/server_info", self._server_info)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(socket)).start()
            yield
        finally:
            await runner.cleanup()
            socket.unlink(missing_ok=True)  # noqa: ASYNC240

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = orjson.loads(await request.read())
        self.requests.append(body)
        if self.faults:
            response = self.faults.popleft()(body)
            if response is not None:
                return response
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        await asyncio.sleep(self.delay_s)
        count = min(body["max_tokens"], 8) if self.ends else body["max_tokens"]
        ids = [body["prompt"][-1]] * count
        if self.ends:
            ids[-1] = body["stop_token_ids"][0]
        return _json(
            {
                "choices": [
                    {
                        "token_ids": ids,
                        "prompt_token_ids": body["prompt"],
                        "logprobs": {"token_logprobs": [-0.5] * len(ids)},
                        "finish_reason": "stop" if self.ends else "length",
                    }
                ]
            }
        )

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "policy", "max_model_len": self.max_model_len}]})

    async def _server_info(self, request: web.Request) -> web.Response:
        model = {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32"}
        return web.json_response({"vllm_config": {"model_config": model}})


def _json(answer: Mapping[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(answer), content_type="application/json")


async def _serve_forever(socket: Path, delay_s: float) -> None:
    async with FakeVLLM(delay_s=delay_s).serving(socket):
        await asyncio.Event().wait()


def main(arguments: list[str]) -> None:
    """`python -m sandbox_rl.policies.fake_vllm SOCKET DELAY_S`: in a process of its own."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(Path(arguments[0]), float(arguments[1])))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
