"""`policy.sleep`: the server rests while the trainer updates. A CPU frees nothing by it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from sandbox_rl.training.checkpoints import last_complete
from tests.vllm.support import PROMPT, ask, disturb, gap
from tests.vllm.test_restart import children
from tests.vllm.test_training import finish, metrics, start, write_recipe

__all__ = ["write_recipe"]

SAME = 1e-5


@pytest.fixture
def asleep(shared):
    """Put to sleep after a publication; awake again afterwards."""
    shared.publish()
    shared.publisher.sleep()
    yield shared
    if shared.publisher.asleep:
        shared.publish()


def call(on, method, route):
    (server,) = on.server.servers
    return on.loop.run(server.call(method, route))


def test_a_sleeper_is_healthy_serves_nothing_and_wakes_with_new_weights(asleep):
    assert call(asleep, "GET", "/is_sleeping") == {"is_sleeping": True}
    assert asleep.loop.run(asleep.server.servers[0].healthy())
    with pytest.raises(TimeoutError):
        ask(asleep, timeout=1.0)
    disturb(asleep.model, seed=21)
    asleep.publish()
    assert call(asleep, "GET", "/is_sleeping") == {"is_sleeping": False}
    assert gap(asleep.model, PROMPT, ask(asleep)) < SAME


def test_a_sleeper_that_dies_is_started_again_when_it_is_wanted(asleep):
    """Not before: its memory is the trainer's."""
    (front,) = children(asleep.server._process.pid)
    os.kill(front, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while asleep.server._up.is_set():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    restarts = asleep.server._restarts
    time.sleep(1.0)
    assert asleep.server._restarts == restarts
    disturb(asleep.model, seed=22)
    asleep.publish()
    assert asleep.server._restarts == restarts + 1
    assert gap(asleep.model, PROMPT, ask(asleep)) < SAME


def test_a_run_whose_server_sleeps_trains_on_what_it_published(write_recipe):
    recipe = write_recipe(
        "sleep",
        policy={
            "type": "vllm",
            "sleep": True,
            "arguments": {"dtype": "float32", "kv-cache-memory-bytes": 256 << 20},
        },
        evaluation={"tasks": 2, "every_steps": 1},
        grpo={
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "learning_rate": 1.0e-3,
            "activation_checkpointing": False,
            "save_steps": 2,
        },
    )
    finish(start(str(recipe)))
    run = recipe.parent / "runs" / "sleep"
    assert last_complete(run / "checkpoints").name == "checkpoint-2"
    assert all(line["mismatch/mean"] < 1e-4 for line in metrics(run) if "grad_norm" in line)
    log = (run / "vllm.log").read_text()
    # After the rollouts of both steps, and before the second update again: an evaluation had woken it.
    assert log.count("POST /sleep?level=2") == 2
    assert log.count("POST /wake_up?tags=kv_cache") == 2
