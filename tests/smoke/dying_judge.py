"""A judge that works until it is told not to, and runs of a policy that gives it something to judge."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.smoke.support import saved_model
from tests.smoke.test_data_order import RECIPE as SMALL


class DyingJudge:
    """Finds every answer right while it `lives`; then it refuses that part of its requests, by their text."""

    def __init__(self) -> None:
        self.refuses = 0.0
        self.url = ""

    def reply(self, body: bytes) -> tuple[int, bytes]:
        text = json.loads(body)["messages"][0]["content"]
        question = json.loads(body)["messages"][1]["content"].partition("JSON")[0]
        if sum(question.encode()) % 8 < 8 * self.refuses:
            return 503, b"{}"
        verdict = json.dumps({re.findall(r"verdict_\w+", text)[0]: "CORRECT"})
        return 200, json.dumps({"choices": [{"message": {"content": verdict}}], "usage": {}}).encode()


@contextmanager
def dying_judge() -> Iterator[DyingJudge]:
    judge = DyingJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, data = judge.reply(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def judged_recipe(judge: DyingJudge, directory: Path) -> dict[str, Any]:
    """Of a policy that answers every task, on a server of `tests.faults.served`; and so many tasks that no
    verdict is known from before."""
    (source,) = SMALL["data"]["sources"]
    return SMALL | {
        "model": {"path": saved_model(directory / "model"), "dtype": "float32"},
        "output_dir": str(directory / "runs"),
        "data": {"sources": [{**source, "size": 400, "accept_degenerate": True}]},
        "policy": {"type": "vllm", "engine": "external"},
        "episode": SMALL["episode"] | {"max_tokens": 1000, "turn_tokens": 100},
        "rollout": SMALL["rollout"] | {"overlong": "score"},  # all of them use up their turns
        "reward": {
            "workers": 1,
            "scorer": "judge",
            "judge": {"base_url": judge.url, "model": "m", "retries": 0, "requests_per_second": 1000},
        },
        "grpo": {
            "num_generations": 4,
            "max_steps": 10_000,
            "save_steps": 10_000,
            "learning_rate": 1e-9,
            "activation_checkpointing": False,
        },
    }
