"""A server that speaks vLLM's routes without a model: for tests, benchmarks and dry runs.

It says what `script` says, or repeats the last token id of the prompt until `max_tokens`, or ends at once
with the first stop id, after `delay_s`. Of weights it takes `shm`: it says that it holds what the file holds.
What should go wrong is queued in `faults`, or by route in `control_faults`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from sandbox_rl.policies.vllm.fake_weights import checksums_of, loaded

Fault = Callable[[dict[str, Any]], web.StreamResponse | None]
"""Gets the request's body; answers in the server's place, or hangs up by returning None."""


@dataclass
class FakeVLLM:
    """What the fake was asked and how it answers.

    Args:
        delay_s: before each answer, as if sampling.
        slots: turns that are sampled at once, the others waiting; no bound for None.
        max_model_len: what it says about its context.
        developer: whether it has the developer routes.
        log_stats: whether it counts what its engine does; vLLM's `--disable-log-stats` if not.
        transfer: engine of its weight transfer.
        card: UUID of its card.
        frozen_tokens: that a turn in flight has when a publication freezes it.

    Attributes:
        requests: bodies of the completions asked for.
        control: the developer routes called, in their order, with their query.
        control_faults: route → how often it still fails with a 500.
        instead: route → what answers a body in its place, in a thread of its own.
        outage: answers all turns while it is set, as one of `faults` does; of `strikes` where that is set.
        strikes: which turns `outage` and `extra_s` are for; all by default.
        extra_s: further seconds before the answer to such a turn.
        script: a request's body → the ids of the turn, its end included.
        tokenizer: what the routes about ids and conversations answer with (a Hugging Face one).
        hung: connections are accepted and nothing is answered, not even how it is.
        stuck: it says that it is well, and its engine does nothing more.
    """

    delay_s: float = 0.0
    slots: int | None = None
    max_model_len: int = 65_536
    version: str = "0.31.0"
    requests: list[dict[str, Any]] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    developer: bool = True
    log_stats: bool = True
    transfer: str = "shm"
    card: str | None = None
    frozen_tokens: int = 0
    logprobs_mode: str = "processed_logprobs"
    control: list[str] = field(default_factory=list)
    control_faults: dict[str, int] = field(default_factory=dict)
    instead: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    outage: Fault | None = None
    strikes: Callable[[dict[str, Any]], bool] = lambda body: True
    extra_s: float = 0.0
    hung: bool = False
    stuck: bool = False
    script: Callable[[dict[str, Any]], Sequence[int]] | None = None
    tokenizer: Any = None
    paused: bool = False
    asleep: set[str] = field(default_factory=set)
    """What sleeps: `weights`, `kv_cache`."""
    _slots: asyncio.Semaphore = field(init=False, repr=False)
    _in_flight: set[str] = field(default_factory=set, repr=False)
    _seated: dict[str, int | None] = field(default_factory=dict, repr=False)
    """Of turns that are being sampled, and do not wait for a slot: version of the weights they began with."""
    _next_version: int | None = None
    _frozen: dict[str, list[list[int]]] = field(default_factory=dict, repr=False)
    _tokens: int = 0
    weights: dict[str, Any] = field(default_factory=dict)
    """Name → shape and bytes of what it was given."""
    weights_version: int | None = None
    """The number that it was told of them."""

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.slots if self.slots is not None else 1 << 30)

    @asynccontextmanager
    async def serving(self, socket: Path) -> AsyncIterator[None]:
        """Listen on a unix socket while open."""
        app = web.Application(client_max_size=1 << 28, middlewares=[self._perhaps_hung])
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/health", self._health)
        if self.tokenizer is not None:
            app.router.add_post("/tokenize", self._tokenize)
            app.router.add_post("/detokenize", self._detokenize)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        if self.developer:
            app.router.add_get("/server_info", self._server_info)
            app.router.add_get("/is_paused", self._is_paused)
            app.router.add_get("/is_sleeping", self._is_sleeping)
            app.router.add_get("/get_world_size", self._world_size)
            for route, act in self._developer_routes().items():
                app.router.add_post(route, self._controlled(route, act))
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(socket)).start()
            yield
        finally:
            await runner.cleanup()
            socket.unlink(missing_ok=True)  # noqa: ASYNC240

    @web.middleware
    async def _perhaps_hung(self, request: web.Request, handler: Any) -> web.StreamResponse:
        while self.hung:  # noqa: ASYNC110 (set from outside)
            await asyncio.sleep(0.01)
        response: web.StreamResponse = await handler(request)
        return response

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = orjson.loads(await request.read())
        self.requests.append(body)
        struck = self.strikes(body)
        fault = self.faults.popleft() if self.faults else self.outage if struck else None
        if fault is not None:
            response = fault(body)
            if response is not None:
                return response
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        name = body.get("request_id", str(id(body)))
        self._in_flight.add(name)
        try:
            async with self._slots:
                await self._thawed()
                self._seated[name] = self._next_version
                await asyncio.sleep(self.delay_s + (self.extra_s if struck else 0.0))
                await self._thawed()
        finally:
            self._in_flight.discard(name)
        ids, ended = self._turn(body)
        scores = [{str(token): {"logprob": -0.5}} for token in body["prompt"]]
        return _json(
            {
                "choices": [
                    {
                        "token_ids": ids,
                        "prompt_token_ids": body["prompt"],
                        "prompt_logprobs": scores if "prompt_logprobs" in body else None,
                        "logprobs": {"token_logprobs": [-0.5] * len(ids)},
                        "finish_reason": "stop" if ended else "length",
                    }
                ]
            }
        )

    async def _thawed(self) -> None:
        """Requests freeze then; a test may set it from outside, so that there is nothing to wait on."""
        while self.paused or self.asleep or self.stuck:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _turn(self, body: dict[str, Any]) -> tuple[list[int], bool]:
        """The ids of a turn, and whether it has its end."""
        most: int = body["max_tokens"]
        if self.script is not None:
            said = list(self.script(body))
            return said[:most], len(said) <= most
        ids = [body["prompt"][-1]] * min(most, 8)
        ends = "stop_token_ids" in body  # who asks for scores has none
        if ends:
            ids[-1] = body["stop_token_ids"][0]
        return ids, ends

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=body["add_generation_prompt"], return_dict=False
        )
        return _json({"tokens": list(ids)})

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        return _json({"prompt": self.tokenizer.decode(body["tokens"])})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        """A turn that is being sampled has some more tokens each time that one looks."""
        if not self.log_stats:
            return web.Response(text="# nothing\n")
        if self._in_flight and not (self.paused or self.asleep or self.stuck):
            self._tokens += 1
        values = {"generation_tokens_total": self._tokens, "num_requests_running": len(self._in_flight)}
        return web.Response(
            text="".join(f'vllm:{name}{{engine="0"}} {n:.1f}\n' for name, n in values.items())
        )

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "policy", "max_model_len": self.max_model_len}]})

    async def _server_info(self, request: web.Request) -> web.Response:
        model = {"logprobs_mode": self.logprobs_mode, "dtype": "torch.float32"}
        config = {"model_config": model, "weight_transfer_config": {"backend": self.transfer}}
        return web.json_response({"vllm_config": config})

    async def _is_paused(self, request: web.Request) -> web.Response:
        while self.stuck:  # noqa: ASYNC110 (the engine itself is asked)
            await asyncio.sleep(0.01)
        return web.json_response({"is_paused": self.paused or bool(self.asleep)})

    async def _is_sleeping(self, request: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": bool(self.asleep)})

    async def _world_size(self, request: web.Request) -> web.Response:
        return web.json_response({"world_size": 1})

    def _developer_routes(self) -> dict[str, Callable[[Any, Mapping[str, str]], Any]]:
        """Route → what it does with a body and a query; answers JSON."""
        return {
            "/pause": lambda body, query: setattr(self, "paused", True),
            "/resume": lambda body, query: setattr(self, "paused", False),
            "/sleep": lambda body, query: self._sleep(query),
            "/wake_up": lambda body, query: self.asleep.discard(query["tags"]),
            "/init_weight_transfer_engine": lambda body, query: None,
            "/start_weight_update": lambda body, query: None,
            "/update_weights": lambda body, query: self._load(body["update_info"]),
            "/finish_weight_update": lambda body, query: None,
            "/reset_prefix_cache": lambda body, query: None,
            "/collective_rpc": lambda body, query: {"results": [self._rpc(body)]},
        }

    def _controlled(
        self, route: str, act: Callable[[Any, Mapping[str, str]], Any]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            content = await request.read()
            body = orjson.loads(content) if content else {}
            query = dict(request.query)
            name = f"{route} {body['method']}" if route == "/collective_rpc" else route
            self.control.append(" ".join([name, *(f"{k}={v}" for k, v in query.items())]))
            if self.control_faults.get(name, 0) > 0:
                self.control_faults[name] -= 1
                return web.json_response({"error": f"{name} failed"}, status=500)
            if route in self.instead:
                return web.json_response(await asyncio.to_thread(self.instead[route], body) or {})
            return web.json_response(act(body, query) or {})

        return handle

    def _sleep(self, query: Mapping[str, str]) -> None:
        self.asleep = {"weights", "kv_cache"}
        if query.get("level") == "2":
            self.weights = {}

    def _load(self, update: Mapping[str, Any]) -> None:
        self.weights |= loaded(update["path"])

    def _rpc(self, body: Mapping[str, Any]) -> Any:
        method, args = body["method"], body["args"]
        if method == "sandbox_rl_card":
            return self.card
        if method == "sandbox_rl_frozen":
            self._next_version = int(args[0])
            for name in self._seated.keys() & self._in_flight:
                self._frozen.setdefault(name, []).append([self.frozen_tokens, int(args[0])])
        if method == "sandbox_rl_switches":
            began = self._seated.pop(args[0], None)
            return [*([] if began is None else [[0, began]]), *self._frozen.pop(args[0], [])]
        if method == "sandbox_rl_load":
            for path in json.loads(args[0]):
                self._load({"path": path})
        if method == "sandbox_rl_version":
            self.weights_version = int(args[0]) if args else self.weights_version
            return {"version": self.weights_version}
        return checksums_of(self.weights, json.loads(args[0])) if method == "sandbox_rl_checksums" else {}


def _json(answer: Mapping[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(answer), content_type="application/json")
