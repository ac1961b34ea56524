"""What only the docker backend promises: its image, its owner's death, and its mistakes in one line."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox_rl.errors import SetupError
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.backend import DockerBackend
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.ownership import LABEL

from ..docker_engine import settings_for

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio, sys
from sandbox_rl.sandboxes.config import DockerSettings
from sandbox_rl.sandboxes.docker.backend import DockerBackend

async def main():
    settings = DockerSettings.model_validate_json(sys.argv[1])
    async with DockerBackend(settings=settings) as backend, backend.sandbox(), backend.sandbox() as sandbox:
        await sandbox.exec("setsid sleep 600 & true", timeout=60)
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def refusal(settings: DockerSettings) -> str:
    with pytest.raises(SetupError) as caught:
        async with DockerBackend(settings=settings):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labelled(host: str) -> list[str]:
    engine = DockerEngine(host)
    try:
        return [name for name, _ in engine.labelled(LABEL)]
    finally:
        engine.close()


def test_an_image_that_is_not_there(engine):
    said = asyncio.run(refusal(settings_for(engine, image="nobody/has-this:1")))
    assert "nobody/has-this:1" in said
    assert "docker pull" in said


def test_another_image_than_the_one_that_was_pinned(engine):
    wanted = "sha256:" + "0" * 64
    assert wanted in asyncio.run(refusal(settings_for(engine, digest=wanted)))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_engine(tmp_path):
    said = asyncio.run(refusal(settings_for(f"unix://{tmp_path}/none.sock")))
    assert "no Docker engine" in said
    gc.collect()  # the SDK does not close a socket that could not connect; its warning stays here


def test_an_unknown_runtime(engine):
    assert "'no-such-runtime'" in asyncio.run(refusal(settings_for(engine, runtime="no-such-runtime")))


def test_nothing_outlives_a_killed_owner(engine):
    settings = settings_for(engine).model_dump_json()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, settings], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert len(labelled(engine)) >= 2
        owner.kill()
    deadline = time.monotonic() + 60
    while labelled(engine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert labelled(engine) == []


def test_self_check_from_the_command_line(engine):
    arguments = [f"host={engine}", "image=sandbox-rl-skeleton:latest", "read_only={/usr: /usr}"]
    command = ["self-check", "--backend", "docker", "--cases", "ISO-01", "--json", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "sandbox_rl.cli", *command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["backend"]["backend"] == "docker"
    assert {row["case"]: row["verdict"] for row in report["cases"]} == {"ISO-01": "pass", "ISO-01b": "pass"}
