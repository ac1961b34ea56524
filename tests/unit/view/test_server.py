"""The server: this machine only, one token otherwise, nothing but reading, live."""

from __future__ import annotations

import asyncio
import json
import os
import time

import aiohttp
import pytest

from sandbox_rl.errors import ConfigError, DataError
from sandbox_rl.journal import Journal
from sandbox_rl.view.page import FILES
from sandbox_rl.view.server import Viewer
from tests.unit.view.run_on_disk import bash, make_run, rollout, write_episode


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        yield session


async def test_all_its_files_and_answers_are_there(tmp_path, client):
    async with Viewer([make_run(tmp_path / "run")]) as viewer:
        for name in ("", *FILES):
            async with client.get(viewer.url + name) as reply:
                assert reply.status == 200
                assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
                assert "unsafe" not in reply.headers["Content-Security-Policy"]
        async with client.get(viewer.url + "api/overview") as reply:
            assert (await reply.json())["name"] == "run"
        for wrong in ("api/nothing", "api/episode?id=x", "api/overview?run=7", "api/timeline?step=x"):
            async with client.get(viewer.url + wrong) as reply:
                assert (reply.status, list(await reply.json())) == (400, ["error"])
        for wrong in ("x.js", "..%2f..%2fetc%2fpasswd", "%00", "api/"):
            async with client.get(viewer.url + wrong) as reply:
                assert reply.status in (403, 404)
        async with client.post(viewer.url + "api/overview") as reply:
            assert reply.status == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", ""]
)
async def test_names_of_other_machines_are_refused(tmp_path, client, host):
    async with Viewer([make_run(tmp_path / "run")]) as viewer:
        async with client.get(viewer.url + "api/overview", headers={"Host": host}) as reply:
            assert reply.status == 403
        async with client.get(viewer.url, headers={"Host": "localhost:9"}) as reply:
            assert reply.status == 200


async def test_another_address_needs_the_token(tmp_path, client):
    async with Viewer([make_run(tmp_path / "run")], host="0.0.0.0") as viewer:
        bare, token = viewer.url.split("?token=")
        bare = bare.replace("0.0.0.0", "127.0.0.1")
        for guess in ("", "?token=", "?token=x", f"?token={token[:-1]}", f"?token={token}x"):
            async with client.get(bare + "api/overview" + guess) as reply:
                assert reply.status == 403
        async with client.get(bare + "?token=" + token) as reply:
            assert reply.status == 200
        async with client.get(bare + "api/overview") as reply:  # the cookie has it now
            assert reply.status == 200


def test_loopback_is_told_from_names_that_look_like_it():
    def asks_for_a_token(host):
        return "?token=" in Viewer([], host=host).url

    assert not any(map(asks_for_a_token, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert all(map(asks_for_a_token, ("0.0.0.0", "127.0.0.1.evil.example", "::", "", "example.org")))


async def test_what_is_written_shows_within_two_seconds(tmp_path, client):
    directory = make_run(tmp_path / "run", finished=False)
    async with Viewer([directory]) as viewer:
        with Journal(directory / "journal") as journal:
            write_episode(journal, rollout("train-000700-0000", bash(("ls", "x")), "1", 1.0))
        written = time.monotonic()
        while True:
            async with client.get(viewer.url + "api/episodes?text=train-000700") as reply:
                if (await reply.json())["total"]:
                    break
            await asyncio.sleep(0.05)
        # Beside other tests everything takes longer.
        assert time.monotonic() - written < (20 if "PYTEST_XDIST_WORKER" in os.environ else 2)


async def test_a_port_in_use_and_no_run_are_one_line(tmp_path):
    directory = make_run(tmp_path / "run")
    async with Viewer([directory]) as viewer:
        port = int(viewer.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(ConfigError, match=f"--port: {port}"):
            async with Viewer([directory], port=port):
                pass
    with pytest.raises(DataError, match="no such directory"):
        async with Viewer([tmp_path / "nothing"]):
            pass


async def test_a_cache_that_cannot_be_written_to_is_done_without(tmp_path, client, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    async with Viewer([make_run(tmp_path / "run")]) as viewer:
        async with client.get(viewer.url + "api/episodes") as reply:
            assert json.loads(await reply.read())["total"] == 25
    assert "index.sqlite" not in os.listdir(tmp_path / "run" / "journal")
