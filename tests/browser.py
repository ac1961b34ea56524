"""A headless Chromium, driven by its own protocol: enough to open a page, look at it and press keys."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["CHROMIUM", "Browser", "Page"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""The program, where one is installed."""

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-port=0", "--hide-scrollbars", "--force-color-profile=srgb", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """An async context manager."""

    async def __aenter__(self) -> Browser:
        assert CHROMIUM is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={self._profile.name}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(60):
            while not (found := re.search(rb"ws://\S+", line := await self._process.stderr.readline())):
                assert line, "Chromium ended before it listened"
        self._draining = asyncio.create_task(self._process.stderr.read())
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(found.group().decode(), max_msg_size=0)
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reading.cancel()
        await self._socket.close()
        await self._session.close()
        self._process.terminate()
        await self._process.wait()
        await self._draining
        self._profile.cleanup()

    async def page(self, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A new page of that size, which shares no cookie, cache or storage with another."""
        context = await self.send("Target.createBrowserContext")
        target = (await self.send("Target.createTarget", {"url": "about:blank", **context}))["targetId"]
        attached = await self.send("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, attached["sessionId"], context)
        self._pages[page.session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await page.send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await page.send("Emulation.setEmulatedMedia", {"features": [scheme]})
        return page

    async def send(
        self, method: str, values: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """One command and its result."""
        number = next(self._numbers)
        coming = self._replies[number] = asyncio.get_running_loop().create_future()
        about = {"sessionId": session} if session else {}
        await self._socket.send_json({"id": number, "method": method, "params": values or {}, **about})
        async with asyncio.timeout(60):
            reply = await coming
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    async def _read(self) -> None:
        async for message in self._socket:
            value = json.loads(message.data)
            if "id" in value:
                self._replies.pop(value["id"]).set_result(value)
            elif value.get("sessionId") in self._pages:
                self._pages[value["sessionId"]].heard(value["method"], value["params"])


class Page:
    """One page; `errors` are what its console said of errors, `asked` the addresses that it asked for."""

    def __init__(self, browser: Browser, session: str, context: dict[str, Any]) -> None:
        self._browser = browser
        self._context = context
        self.session = session
        self.errors: list[str] = []
        self.asked: list[str] = []

    def heard(self, method: str, values: dict[str, Any]) -> None:
        """An event."""
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(values["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(values["args"])[:600])
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(values["entry"])[:600])
        elif method == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"])

    async def send(self, method: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """One command to this page."""
        return await self._browser.send(method, values, self.session)

    async def close(self) -> None:
        """With all that it has stored."""
        await self._browser.send("Target.disposeBrowserContext", self._context)

    async def goto(self, url: str, until: str = "document.querySelector('main h1')") -> None:
        """Open an address and wait until an expression is true."""
        await self.send("Page.navigate", {"url": "about:blank"})
        await self.send("Page.navigate", {"url": url})
        await self.wait(until)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression."""
        values = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        result = await self.send("Runtime.evaluate", values)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def wait(self, expression: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        async with asyncio.timeout(seconds):
            while not await self.evaluate(f"Boolean({expression})"):  # noqa: ASYNC110
                await asyncio.sleep(0.03)

    async def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            await self.send("Input.dispatchKeyEvent", {"type": kind, "key": key, **text})

    async def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        values: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
            values["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = await self.send("Page.captureScreenshot", values)
        path.write_bytes(  # noqa: ASYNC240
            base64.b64decode(shot["data"])
        )
