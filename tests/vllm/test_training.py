"""The whole way with a real server: rollouts, scores, updates, published weights, again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sandbox_rl.journal import read_journal
from sandbox_rl.runs.check import check_run
from sandbox_rl.training.asynchronous.progress import GroupProgress
from sandbox_rl.training.checkpoints import last_complete, step_of
from tests import prepared
from tests.processes import gone, tree_of
from tests.vllm.conftest import RECIPE, REPOSITORY
from tests.vllm.support import fronts, logprobs


def start(*arguments: str) -> subprocess.Popen[str]:
    return prepared.Popen(
        [sys.executable, "-m", "sandbox_rl.cli", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,  # where the recipe's own reward is imported from
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        printed, _ = process.communicate(timeout=560)
    except subprocess.TimeoutExpired:
        for pid in tree_of(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, printed
    return printed


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill_a_server(processes: list[subprocess.Popen[str]], run: Path) -> None:
    """The second of two, once there was an update."""
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _, second = fronts(processes[0].pid)
    assert not fronts(processes[1].pid), "one process has them all"
    os.kill(second, signal.SIGKILL)


def test_asynchronous_survives_a_kill(write_recipe):
    """SIGKILL of the trainer leaves no process; the resumed run trains no group a second time."""
    recipe = write_recipe(
        "async",
        mode="async",
        evaluation={"tasks": 0},
        grpo={
            "max_steps": 4,
            "num_generations": 4,
            "learning_rate": 1.0e-3,
            "token_budget": 1024,
            "activation_checkpointing": False,
            "save_steps": 2,
        },
    )
    run = recipe.parent / "runs" / "async"
    process = start(str(recipe))
    deadline = time.monotonic() + 240
    while last_complete(run / "checkpoints") is None and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = tree_of(process.pid)
    assert len(family) > 4, "a supervisor, a server with its engine, and the rollouts"
    process.kill()
    process.communicate(timeout=90)
    gone(family)

    checkpoint = last_complete(run / "checkpoints")
    state = json.loads((checkpoint / "groups.json").read_text())
    behind = set(range(state["first"])) | set(state["ahead"])
    assert behind
    finish(start(str(recipe), "--resume"))
    names = [r["episode_id"] for r in read_journal(run / "journal") if r["phase"] == "train"]
    assert len({name.removesuffix("-r1") for name in names}) == len(names), "no group stands twice"
    groups = {int(name.split("-")[1]) for name in names if name.endswith("-r1")}
    assert not groups & behind
    lines = (run / "history.jsonl").read_text().splitlines()
    (reused,) = [e["reused"] for e in map(json.loads, lines) if e["event"] == "resumed"]
    assert groups or reused, "what was lost is sampled again, unless its whole group had ended"
    steps = [line for line in metrics(run) if "grad_norm" in line]
    assert steps[-1]["step"] == 4
    assert any(line["grad_norm"] > 0 for line in steps)
    assert all(line["ratio"] == pytest.approx(1, abs=0.2) for line in steps)
    assert max(line["off_policy/age_max"] for line in steps) <= 4
    events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in events] == [
        ("started", 0),
        ("resumed", step_of(checkpoint)),
        ("finished", 4),
    ]
    ids = [r["episode_id"] for r in read_journal(run / "journal")]
    assert len(ids) == len(set(ids)), "an id names one episode"
    used = GroupProgress().restore(last_complete(run / "checkpoints"))
    assert behind < used
    found = check_run(run)
    assert (found.violation, found.updates) == (None, 4), found
    assert (run / "export" / "model.safetensors").is_file()
    again = prepared.run([sys.executable, "-m", "sandbox_rl", "replay", str(run), "--to-step", "4"])
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the weights after 4 updates are the same" in again.stdout, "killed, resumed, and to the bit"


SYNC = {
    # A few rows: parts, and as many on each rank.
    "update": {"micro_batch_tokens": 600},
    "grpo": {"max_steps": 4, "per_device_train_batch_size": 8, "save_steps": 2},
}
ASYNC = {"mode": "async", "grpo": {"max_steps": 12, "token_budget": 1024, "save_steps": 4}}
FLEETS = {
    "sync": ("2x NVIDIA H100 80GB", SYNC),
    "sync-split": ("4x NVIDIA H100 80GB", SYNC),
    "async": ("4x NVIDIA H100 80GB", ASYNC),
    "async-shared": ("2x NVIDIA H100 80GB", ASYNC),
}
"""By mode: the cards that it seems to run on, and blocks of the recipe for two ranks and two servers. On two
cards each has a rank and a server, on four two train and two serve."""


def fleet(write_recipe, monkeypatch, mode: str, name: str, **more) -> Path:
    cards, blocks = FLEETS[mode]
    monkeypatch.setenv("SANDBOX_RL_FAKE_CARDS", cards)
    both = {"num_generations": 4, "learning_rate": 1.0e-3, "activation_checkpointing": False}
    blocks = {"evaluation": {"tasks": 0}} | blocks | {"grpo": both | blocks["grpo"]} | more
    return write_recipe(name, **blocks)


def test_two_processes_and_two_servers_that_sleep_of_which_one_is_killed(write_recipe, monkeypatch):
    """As on two cards that train and serve: each rank drives its own episodes on both servers and computes
    its rows in parts; weights are published to both, and to the one that was started again. What is sampled
    after an update, and after a sleep, is the base with the adapters of that update."""
    recipe = fleet(
        write_recipe,
        monkeypatch,
        "sync",
        "two-sync",
        model=RECIPE["model"] | {"lora": {"r": 8}},
        policy=RECIPE["policy"] | {"sleep": True},
        evaluation={"tasks": 4, "every_steps": 2},
        grpo={
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "learning_rate": 5.0e-3,
            "activation_checkpointing": False,
            "save_steps": 1,
        },
    )
    run = recipe.parent / "runs" / "two-sync"
    processes = prepared.ranks(2, "sandbox_rl.cli", "train", recipe)
    kill_a_server(processes, run)
    printed = "".join(finish(process) for process in processes)
    assert "shared: 2 x NVIDIA H100 80GB train (" in printed
    assert "with 2 servers on them" in printed
    assert re.search(r"(?s)vLLM server [01] of 2: .*restart 1 of 3", printed)
    assert len(re.findall(r"(?m)^Model: .*export$", printed)) == 1
    records = [r for r in read_journal(run / "journal") if r["phase"] == "train"]
    # Two groups on each process in each step; a group's number is that in the whole run.
    assert {r["episode_id"].rpartition("-")[0] for r in records} == {f"train-{n:06d}" for n in range(12)}
    versions = {(r["step"], t["weight_version"]) for r in records for t in r["turns"]}
    assert versions == {(step, step) for step in range(3)}
    steps = [line for line in metrics(run) if "grad_norm" in line]
    assert all(0 < line["mismatch/mean"] < 1e-4 and line["mismatch/max"] < 1e-2 for line in steps)
    _sampled_with_the_adapters(run, [r for r in records if r["step"] == 2 and r["turns"]])
    assert (run / "vllm-1.log").is_file()
    log = (run / "vllm-0.log").read_text()
    # In every update; evaluations find it awake and leave it so.
    assert log.count("POST /sleep?level=2") == 3
    assert log.count("POST /wake_up?tags=kv_cache") == 3


def _sampled_with_the_adapters(run: Path, records: list[dict]) -> None:
    """Those of the update before; and what is exported has them in its weights."""
    (warm,) = (run.parent / "warmup").glob("*/model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(warm.parent, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run / "checkpoints" / "checkpoint-2").eval()
    assert len(records) > 8
    for record in records[:8]:
        turn = record["turns"][0]
        asked, seen = (record["prompt_ids"], turn["token_ids"]), torch.tensor(turn["logprobs"])
        assert (logprobs(model, *asked) - seen).abs().mean() < 1e-4
        with model.disable_adapter():
            assert (logprobs(model, *asked) - seen).abs().mean() > 1e-3
    before, after = load_file(warm), load_file(run / "export" / "model.safetensors")
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.faults
def test_two_asynchronous_processes_and_two_servers_of_which_one_is_killed(write_recipe, monkeypatch):
    """As on four cards, of which two train; the process that rolls out finds the server again too."""
    recipe = fleet(write_recipe, monkeypatch, "async", "two-async")
    run = recipe.parent / "runs" / "two-async"
    processes = prepared.ranks(2, "sandbox_rl.cli", "train", recipe)
    kill_a_server(processes, run)
    printed = "".join(finish(process) for process in processes)
    assert "2 servers on 2 x NVIDIA H100 80GB" in printed
    steps = [line for line in metrics(run) if "grad_norm" in line]
    assert steps[-1]["step"] == 12
    assert all(line["ratio"] == pytest.approx(1, abs=0.2) for line in steps)
    assert max(line["off_policy/age_max"] for line in steps) <= 4


@pytest.mark.faults
@pytest.mark.parametrize("mode", FLEETS)
def test_two_processes_and_two_servers_are_killed_and_go_on(write_recipe, monkeypatch, mode):
    recipe = fleet(write_recipe, monkeypatch, mode, f"killed-{mode}")
    run = recipe.parent / "runs" / f"killed-{mode}"
    processes = prepared.ranks(2, "sandbox_rl.cli", "train", recipe)
    deadline = time.monotonic() + 300
    while last_complete(run / "checkpoints") is None:
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = {pid for process in processes for pid in tree_of(process.pid)}
    for process in processes:
        process.kill()
        process.communicate(timeout=90)
    gone(family)
    for process in prepared.ranks(2, "sandbox_rl.cli", "train", recipe, "--resume"):
        finish(process)
    found = check_run(run)
    assert (found.violation, found.updates) == (None, FLEETS[mode][1]["grpo"]["max_steps"]), found
    ids = [record["episode_id"] for record in read_journal(run / "journal")]
    assert len(ids) == len(set(ids)), "an id names one episode"
    history = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    assert [event["event"] for event in history] == ["started", "resumed", "finished"]
