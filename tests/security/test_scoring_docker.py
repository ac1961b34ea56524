"""ISO: scoring in containers, where bubblewrap is not available; the claims are those of the other place."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sandbox_rl.builders import scoring_place
from sandbox_rl.errors import SetupError
from sandbox_rl.rewards.config import RewardSettings
from sandbox_rl.rewards.places import PROGRAM, FirstPlace, PlainPlace
from sandbox_rl.rewards.pool import ScoringPool
from sandbox_rl.sandboxes.config import DockerSettings, EmbeddedSettings
from sandbox_rl.sandboxes.docker.engine import DockerEngine
from sandbox_rl.sandboxes.docker.program import DockerPrograms
from sandbox_rl.sandboxes.ownership import LABEL
from sandbox_rl.sandboxes.program import ProgramSandboxes

from ..docker_engine import make_skeleton, settings_for
from .test_scoring_isolation import CLAIMS, HONEST, RUNS, score

pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_BWRAP = ProgramSandboxes(PROGRAM, memory_mb=2048, bwrap=Path("/nowhere/bwrap"))


@pytest.fixture(scope="module")
def settings(engine: str) -> DockerSettings:
    """Of an image that is an empty root: nothing is shown but what scoring needs."""
    make_skeleton(engine)
    return settings_for(engine, read_only={})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(settings: DockerSettings) -> AsyncIterator[ScoringPool]:
    containers = DockerPrograms(PROGRAM, settings, memory_mb=2048)
    place = FirstPlace([("sandboxes", NO_BWRAP), ("containers", containers)])
    expected = ("math", RUNS, HONEST)
    async with ScoringPool(place, RewardSettings(timeout_s=1.0, memory_mb=512), expected=expected) as made:
        yield made


async def test_code_in_a_scoring_container_reaches_nothing(pool: ScoringPool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("gold of another run")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        texts = [t.replace("{secret!r}", repr(str(secret))).replace("{port}", port) for t in CLAIMS.values()]
        rewards = await asyncio.gather(*(score(pool, text) for text in texts))
    true = [claim for claim, reward in zip(CLAIMS, rewards, strict=True) if reward.value != 0.0]
    assert not true
    assert (await score(pool, "import math, os; verdict = 1.0")).value == 1.0  # so the claims can come true


async def test_nothing_of_an_answer_reaches_the_next(pool: ScoringPool) -> None:
    spoilers = (
        "import builtins; builtins.float = lambda x: 1.0",
        "while True: pass",
        "import os; os._exit(3)",
    )
    await asyncio.gather(*(score(pool, text) for text in spoilers for _ in range(2)))
    assert (await score(pool, "no", HONEST)).value == 0.0
    assert (await score(pool, "GOLD", HONEST)).value == 1.0
    assert (await score(pool, r"\boxed{\frac{1}{2}}", "math", "0.5")).value == 1.0


async def test_a_container_that_is_killed_is_replaced(pool: ScoringPool, settings: DockerSettings) -> None:
    engine = DockerEngine(settings.host)
    try:
        before = {container for container, _ in engine.labelled(LABEL)}
        for container in before:
            os.kill(engine.process_id(container), signal.SIGKILL)
        rewards = await asyncio.gather(*(score(pool, "GOLD", HONEST) for _ in range(8)))
        assert [reward.value for reward in rewards] == [1.0] * 8
        assert {container for container, _ in engine.labelled(LABEL)} - before
    finally:
        engine.close()


def _any(engine: DockerEngine, run: str) -> bool:
    return any(run in labels.values() for _, labels in engine.labelled(LABEL))


async def test_a_container_ends_with_its_owners_socket(settings: DockerSettings) -> None:
    """What the kernel closes when the owner is killed; nobody has to remove anything."""
    place = DockerPrograms(PROGRAM, settings.model_copy(update={"run": "ends"}), memory_mb=2048)
    await place.open({})
    engine = DockerEngine(settings.host)
    try:
        program = await place.start()
        program.socket.close()
        async with asyncio.timeout(30):
            while _any(engine, "ends"):  # noqa: ASYNC110 - an engine tells nobody
                await asyncio.sleep(0.1)
    finally:
        engine.close()
        await place.close()


async def test_the_choice_is_reported_and_without_any_place_nothing_starts(
    settings: DockerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    containers = DockerPrograms(PROGRAM, settings, memory_mb=2048)
    place = FirstPlace([("sandboxes", NO_BWRAP), ("containers of the image", containers)])
    with caplog.at_level(logging.WARNING):
        await place.open({})
    await place.close()
    assert place.isolation == "docker"
    assert "answers are scored in containers of the image: sandbox.bwrap: /nowhere/bwrap" in caplog.text
    missing = DockerPrograms(PROGRAM, settings.model_copy(update={"image": "none:such"}), memory_mb=2048)
    with pytest.raises(SetupError, match=r"/nowhere/bwrap.*; .*no image 'none:such'"):
        await FirstPlace([("sandboxes", NO_BWRAP), ("containers", missing)]).open({})


async def test_containers_are_the_second_choice_where_an_image_is_known() -> None:
    docker = DockerSettings(type="docker", image="mine:1", digest="sha256:" + "0" * 64)
    assert isinstance(scoring_place(RewardSettings()), ProgramSandboxes)
    assert isinstance(scoring_place(RewardSettings(), EmbeddedSettings()), ProgramSandboxes)
    assert isinstance(scoring_place(RewardSettings(), docker), FirstPlace)
    assert isinstance(scoring_place(RewardSettings(docker_image="other:2")), FirstPlace)
    assert isinstance(scoring_place(RewardSettings(isolation="none"), docker), PlainPlace)
