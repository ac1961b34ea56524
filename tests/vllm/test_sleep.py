"""`policy.sleep`: the server sleeps while the trainer updates. A CPU frees nothing by it."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sandbox_rl.errors import EngineFault
from sandbox_rl.journal import read_journal
from sandbox_rl.training.checkpoints import last_complete
from tests.vllm.conftest import RECIPE, SMALL
from tests.vllm.support import PROMPT, ask, disturb, gap, logprobs
from tests.vllm.test_training import finish, metrics, start

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


def test_a_run_of_adapters_whose_server_sleeps_samples_what_it_published(write_recipe):
    """What is sampled after an update, and after a sleep, is the base with the adapters of that update."""
    recipe = write_recipe(
        "sleep",
        model=RECIPE["model"] | {"lora": {"r": 8}},
        policy={"type": "vllm", "sleep": True, "arguments": SMALL},
        evaluation={"tasks": 4, "every_steps": 1},
        grpo={
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "num_generations": 8,
            "learning_rate": 3.0e-2,
            "activation_checkpointing": False,
            "save_steps": 1,
        },
    )
    printed = finish(start(str(recipe)))
    run = recipe.parent / "runs" / "sleep"
    assert "4 held-out tasks, 2 updates" in printed
    assert last_complete(run / "checkpoints").name == "checkpoint-2"
    steps = [line for line in metrics(run) if "grad_norm" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(0 < line["mismatch/mean"] < 1e-4 and line["mismatch/max"] < 1e-2 for line in steps)
    records = [r for r in read_journal(run / "journal") if r["phase"] == "train"]
    turns = [(r["step"], turn["weight_version"]) for r in records for turn in r["turns"]]
    assert set(turns) == {(0, 0), (1, 1)}
    (warm,) = (recipe.parent / "runs" / "warmup").glob("*/model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(warm.parent, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run / "checkpoints" / "checkpoint-1").eval()
    sampled = [(r["prompt_ids"], r["turns"][0]) for r in records if r["step"] == 1 and r["turns"]]
    for prompt, turn in sampled[:8]:
        seen = torch.tensor(turn["logprobs"])
        assert (logprobs(model, prompt, turn["token_ids"]) - seen).abs().mean() < 1e-4
        with model.disable_adapter():
            assert (logprobs(model, prompt, turn["token_ids"]) - seen).abs().mean() > 1e-3
    before, after = load_file(warm), load_file(run / "export" / "model.safetensors")
    assert any((before[name] != after[name]).any() for name in before)
    log = (run / "vllm.log").read_text()
    # After the rollouts of both steps, and before the second update again: an evaluation had woken it.
    assert log.count("POST /sleep?level=2") == 2
    assert log.count("POST /wake_up?tags=kv_cache") == 2
