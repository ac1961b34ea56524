"""The page's server: on this machine only, or with a token; it reads, and answers GET alone."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.view.api import answer, to_json
from sandbox_rl.view.opened import OpenRun, open_run
from sandbox_rl.view.page import FILES, read_page
from sandbox_rl.view.suspicion import look

logger = logging.getLogger(__name__)

POLL_S = 0.7
"""Between two looks at what a run has written."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Viewer:
    """An async context manager: the runs, opened in a thread of their own, and the page over them.

    Args:
        paths: of the runs.
        host: loopback, or an address that others reach; then `token` is needed to see anything.
        port: 0 takes a free one.

    Raises:
        DataError: one of the paths is no run.
        ConfigError: the port is not available.
    """

    def __init__(self, paths: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> None:
        self._paths = paths
        self._host = host
        self._port = port
        self._token = None if _is_loopback(host) else secrets.token_urlsafe(24)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._runs: list[OpenRun] = []
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """What to open; with its token where one is needed."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/" + (f"?token={self._token}" if self._token else "")

    async def __aenter__(self) -> Viewer:
        await self._call(self._open)
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._file)
        app.router.add_get("/{file}", self._file)
        app.router.add_get("/api/{question}", self._api)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self._close()
            raise ConfigError(
                f"--port: {self._port} at {self._host} is not available ({error.strerror or error}); name "
                "another, or leave it out to take a free one"
            ) from error
        self._port = self._runner.addresses[0][1]
        self._polling = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._polling.cancel()
        with suppress(asyncio.CancelledError):
            await self._polling
        await self._close()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._call(self._stack.close)
        self._thread.shutdown()

    def _open(self) -> None:
        with ExitStack() as stack:
            self._runs = [stack.enter_context(open_run(path)) for path in self._paths]
            self._stack = stack.pop_all()
        for run in self._runs:
            run.golds.start()

    async def _call(self, work: Callable[..., Any], *given: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    async def _poll(self) -> None:
        """Small pieces of work, so that nobody who asks waits for long."""
        while True:
            busy = False
            for run in self._runs:
                await self._call(run.refresh, 0.2)
                busy |= run.behind > 0
                if not run.behind and (run.golds.done or run.state == "running"):
                    busy |= await self._call(look, run, 0.2) > 0
            await asyncio.sleep(0.02 if busy else POLL_S)

    async def _api(self, request: web.Request) -> web.Response:
        question = request.match_info["question"]
        try:
            body = await self._call(lambda: to_json(answer(self._runs, question, dict(request.query))))
        except DataError as error:
            return web.json_response({"error": str(error)}, status=400)
        except (ValueError, OverflowError) as error:
            return web.json_response({"error": f"{question}: {error}"}, status=400)
        except Exception as error:  # a screen that fails must not take the others with it
            logger.exception("api/%s", question)
            said = f"{question}: {type(error).__name__}: {error} (a defect of ours)"
            return web.json_response({"error": said}, status=500)
        response = web.Response(body=body, content_type="application/json")
        response.enable_compression()
        return response

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("file", "index.html")
        if name not in FILES:
            raise web.HTTPNotFound
        response = web.Response(body=read_page(name), content_type=FILES[name], charset="utf-8")
        if self._token and request.query.get("token"):
            response.set_cookie("token", self._token, httponly=True, samesite="Strict")
        return response

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Names of other machines (DNS that was pointed here) and visitors without the token see nothing."""
        if not self._is_ours(request.headers.get("Host", "")):
            response: web.StreamResponse = web.Response(status=403, text="Host header: not this server's\n")
        elif self._token and not self._has_token(request):
            response = web.Response(
                status=403, text="open the address with its token, as `view` printed it\n"
            )
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = web.Response(status=error.status, text=f"{error.reason}\n")
        response.headers.update(HEADERS)
        return response

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
        if self._token:  # reached by whatever name the machine has; the token protects it
            return True
        return name == "localhost" or _is_loopback(name)

    def _has_token(self, request: web.Request) -> bool:
        given = request.query.get("token") or request.cookies.get("token") or ""
        return hmac.compare_digest(given.encode(), (self._token or "").encode())


async def serve(viewer: Viewer, say: Callable[[str], object]) -> None:
    """Serve until cancelled; says where."""
    async with viewer:
        say(viewer.url)
        await asyncio.Event().wait()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
