"""`policy.sleep`: the server sleeps while the trainer updates. A CPU frees nothing by it."""

from __future__ import annotations

import pytest

from sandbox_rl.errors import EngineFault
from tests.vllm.support import PROMPT, ask, disturb, gap

SAME = 1e-5


@pytest.fixture
def asleep(shared):
    """Put to sleep after a publication; awake again afterwards."""
    shared.publish()
    shared.weights.sleep()
    yield shared
    if shared.weights.asleep:
        shared.publish()


def call(on, method, route):
    (server,) = on.server.servers
    return on.loop.run(server.call(method, route))


def test_a_sleeper_is_healthy_serves_nothing_and_wakes_with_new_weights(asleep):
    assert call(asleep, "GET", "/is_sleeping") == {"is_sleeping": True}
    assert asleep.loop.run(asleep.server.servers[0].healthy())
    with pytest.raises((TimeoutError, EngineFault)):  # by whether its last tokens are known to be old
        ask(asleep, timeout=1.0)
    disturb(asleep.model, seed=21)
    asleep.publish()
    assert call(asleep, "GET", "/is_sleeping") == {"is_sleeping": False}
    assert gap(asleep.model, PROMPT, ask(asleep)) < SAME
