"""A model that the Hub has not, or a Hub out of reach, is known after one request."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

ASK = """
from sandbox_rl.errors import ModelError
from sandbox_rl.training.config import ModelSettings
from sandbox_rl.training.pretrained import load_config, load_tokenizer
for load in (load_config, load_tokenizer):
    try:
        load(ModelSettings(path="nowhere/none"))
    except ModelError as error:
        print(error)
"""


@pytest.fixture
def hub():
    """An endpoint that knows no model, and what was asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_): ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def said(endpoint, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_that_is_not_there_is_asked_for_once_each_time(hub, tmp_path):
    endpoint, asked = hub
    lines = said(endpoint, tmp_path)
    assert len(lines) == 2
    assert all("'nowhere/none' cannot be loaded" in line and "404" in line for line in lines)
    assert sum("nowhere" in path for path in asked) == 2, asked


def test_a_hub_out_of_reach_is_named(tmp_path):
    lines = said("http://127.0.0.1:9", tmp_path)
    assert len(lines) == 2
    assert all("network: a server cannot be reached" in line for line in lines)
