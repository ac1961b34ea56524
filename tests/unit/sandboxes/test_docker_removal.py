"""A container that its engine removes by itself, as it does when an agent ends, is not gone yet."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sandbox_rl.errors import SandboxFault
from sandbox_rl.sandboxes.docker.engine import DockerEngine

CLASH = (409, {"message": "removal of container x is already in progress"})
GONE = (404, {"message": "No such container: x"})


class FakeEngine(BaseHTTPRequestHandler):
    """Answers a removal with `removal`, and a wait for its end with `end` once `ended` is set."""

    removal: tuple[int, Any]
    end: tuple[int, Any]
    waited: threading.Event
    ended: threading.Event

    def do_GET(self) -> None:
        self._answer(200, {"ApiVersion": "1.44", "Components": []})

    def do_DELETE(self) -> None:
        assert "force=True" in self.path
        assert "v=True" in self.path
        self._answer(*self.removal)

    def do_POST(self) -> None:
        assert "condition=removed" in self.path
        self.waited.set()
        self.ended.wait(30)
        self._answer(*self.end)

    def _answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def fake_engine(
    removal: tuple[int, Any], end: tuple[int, Any]
) -> Iterator[tuple[DockerEngine, type[FakeEngine]]]:
    events = {"waited": threading.Event(), "ended": threading.Event()}
    handler = type("Handler", (FakeEngine,), {"removal": removal, "end": end, **events})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        engine = DockerEngine(f"tcp://127.0.0.1:{server.server_address[1]}")
        try:
            yield engine, handler
        finally:
            handler.ended.set()
            engine.close()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("end", [(200, {"StatusCode": 0, "Error": None}), GONE])
def test_its_removal_is_waited_for(end: tuple[int, Any]) -> None:
    with fake_engine(CLASH, end) as (engine, fake), ThreadPoolExecutor(1) as threads:
        removing = threads.submit(engine.remove, "x")
        assert fake.waited.wait(30)
        assert not removing.done()
        fake.ended.set()
        assert removing.result(30) is None


@pytest.mark.parametrize(
    "end", [(200, {"StatusCode": 0, "Error": {"Message": "busy"}}), (500, {"message": "busy"})]
)
def test_a_removal_that_fails_is_a_fault(end: tuple[int, Any]) -> None:
    with fake_engine(CLASH, end) as (engine, fake):
        fake.ended.set()
        with pytest.raises(SandboxFault, match="busy"):
            engine.remove("x")


def test_what_is_gone_already_is_no_fault() -> None:
    with fake_engine(GONE, GONE) as (engine, fake):
        engine.remove("x")
        assert not fake.waited.is_set()
