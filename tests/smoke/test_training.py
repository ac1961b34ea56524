"""The whole way with a tiny model in real sandboxes: train, resume after a kill, two processes, export."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sandbox_rl.config.load import load_recipe
from sandbox_rl.journal import read_journal, trajectory_from_record
from sandbox_rl.training.checkpoints import last_complete
from tests import prepared
from tests.documented_metrics import EVALUATION, UPDATE

REPOSITORY = Path(__file__).parents[2]
RECIPE = {
    "name": "smoke",
    "model": {"path": "tiny", "dtype": "float32"},
    "prompts": [str(REPOSITORY / "recipes" / "prompts")],
    "data": {
        "sources": [
            {
                "type": "reasoning_gym",
                "dataset": "chain_sum",
                "size": 100,
                "domain": "arithmetic",
                "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
            }
        ],
        "held_out": 0.2,
    },
    "warmup": {
        "episodes": 48,
        "sft": {"per_device_train_batch_size": 16, "max_steps": 12, "learning_rate": 3.0e-3},
    },
    "episode": {"max_turns": 3, "max_tokens": 300, "turn_tokens": 48, "timeout_s": 600, "exec_timeout_s": 60},
    "rollout": {"concurrency": 16},
    "reward": {"workers": 1},
    "evaluation": {"tasks": 4},
    "grpo": {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "learning_rate": 1.0e-4,
        "activation_checkpointing": False,
        "save_steps": 2,
    },
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe's file; all runs of this module share its cached warm-up."""
    directory = tmp_path_factory.mktemp("training")
    path = directory / "smoke.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(directory / "runs")}))
    return path


def sandbox_rl(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = prepared.run([sys.executable, "-m", "sandbox_rl.cli", *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(recipe) -> tuple[Path, str]:
    """The directory of an uninterrupted run and what it printed."""
    done = sandbox_rl("train", str(recipe))
    return recipe.parent / "runs" / "smoke", done.stdout


def records(run: Path, phase: str) -> list[dict]:
    return [record for record in read_journal(run / "journal") if record["phase"] == phase]


def test_a_person_sees_results_and_the_model_s_path(trained):
    run, printed = trained
    assert "held-out tasks, 4 updates" in printed
    assert "before" in printed
    assert "after" in printed
    assert str(run / "export") in printed.replace("\n", "")


def test_a_run_ends_with_commands_for_what_comes_next(trained, recipe):
    run, printed = trained
    lines = printed.partition("What next:\n")[2].splitlines()
    commands = [shlex.split(line.partition("sandbox-rl ")[2]) for line in lines]
    asked = next(command for command in commands if command[0] == "run")
    assert [command[0] for command in commands] == ["view", "run", "eval", "init"]
    assert commands[0][1:] == [str(run)]
    assert asked[1].endswith("=")
    assert asked[2:] == ["--recipe", str(recipe), "--domain", "arithmetic", "--model", str(run / "export")]
    assert commands[2] == ["eval", str(recipe), "--model", str(run / "export")]


def test_the_run_can_be_computed_from_its_directory(trained, recipe):
    run, _ = trained
    assert load_recipe(run / "recipe.yaml") == load_recipe(recipe)
    machine = json.loads((run / "machine.json").read_text())
    assert machine["sandbox"]["backend"] == "embedded"
    assert machine["versions"]["trl"].startswith("1.16")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rollouts = [m for m in metrics if "solve_rate" in m]
    assert len(rollouts) == 4
    for name in ("reward/arithmetic", "turns", "seconds/generation", "zero_variance_groups", "loss"):
        assert name in rollouts[0]
    for update in rollouts:
        assert set(UPDATE) <= update.keys()
        assert 0 < update["time/rollout"] < update["time/step"]
        assert update["perf/throughput"] > 0
        assert update["off_policy/age_mean"] == update["off_policy/age_max"] == 0
        assert update["time/publish"] < 0.1 * update["time/step"], "the policy is the trained model itself"
    evaluations = [m for m in metrics if "eval/accuracy" in m]
    assert len(evaluations) == 2
    for found in evaluations:
        for metric in EVALUATION:
            assert any(name.startswith(f"eval/{metric.removesuffix('K')}") for name in found), metric
        assert found["eval/avg@1"] == found["eval/accuracy"]
    assert set(json.loads((run / "results.json").read_text())) == {"before", "after"}
    assert list((run / "logs").rglob("events.out.tfevents.*"))


def test_every_episode_is_in_the_journal_token_by_token(trained):
    run, _ = trained
    train, evaluation = records(run, "train"), records(run, "eval")
    assert len(train) == 4 * 8
    assert len(evaluation) == 2 * 4
    for record in train:
        trajectory = trajectory_from_record(record)
        assert trajectory.logprobs is not None
        assert len(trajectory.logprobs) == len(trajectory.completion_ids)
        assert record["reward"] is not None, record["fault"]
    assert {turn["weight_version"] for record in train for turn in record["turns"]} == {0, 1, 2, 3}
    groups = Counter((record["step"], record["task_id"]) for record in train)
    assert set(groups.values()) == {4}


def test_held_out_tasks_are_never_trained_on(trained):
    run, _ = trained
    train = {record["task_id"] for record in records(run, "train")}
    held_out = {record["task_id"] for record in records(run, "eval")}
    assert train
    assert held_out
    assert not train & held_out


def test_the_export_loads_anywhere(trained):
    export = trained[0] / "export"
    model = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert (export / "model.safetensors").is_file()
    assert (export / "generation_config.json").is_file()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]
    card = (export / "README.md").read_text()
    assert "chain_sum" in card
    assert "held-out accuracy after training" in card
    assert "license: apache-2.0" in card


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("quantization", [(), ("model.quantization=nf4",)], ids=["lora", "qlora"])
def test_lora_trains_an_adapter_and_exports_a_merged_model(recipe, quantization, request):
    name = request.node.callspec.id
    sandbox_rl(
        "train",
        str(recipe),
        *(f"name={name}", "model.lora={r: 4, alpha: 8}", "grpo.max_steps=1", "grpo.save_steps=1"),
        *quantization,
        # So raw a policy earns nothing; the entropy bonus gives a gradient all the same.
        *("evaluation.tasks=0", "grpo.learning_rate=1e-2", "grpo.entropy_coef=1.0"),
    )
    run = recipe.parent / "runs" / name
    adapter = load_file(run / "checkpoints" / "checkpoint-1" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    merged = AutoModelForCausalLM.from_pretrained(run / "export")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    (base,) = (recipe.parent / "runs" / "warmup").glob("*/model.safetensors")
    start = AutoModelForCausalLM.from_pretrained(base.parent).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in merged.state_dict().items())
    again = recipe.parent / f"{name}-again"
    sandbox_rl("export", str(run), str(again))
    for name, value in AutoModelForCausalLM.from_pretrained(again).state_dict().items():
        torch.testing.assert_close(value, merged.state_dict()[name], msg=name)


def test_export_of_a_checkpoint(trained, tmp_path):
    run, _ = trained
    done = sandbox_rl("export", str(run), str(tmp_path / "model"), "--step", "2")
    assert done.stdout.strip().endswith("model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 100_000


class RefusingHub(BaseHTTPRequestHandler):
    """Knows no repository and lets none be made."""

    def do_GET(self) -> None:
        self.answer(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(403)

    def answer(self, status: int) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{}")

    def log_message(self, *args) -> None: ...


def push(run: Path, model: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox_rl.cli", "export", str(run), str(model)]
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return prepared.run([*command, "--push-to-hub", "me/my-model"], env=online | variables)


def test_an_upload_that_fails_keeps_the_model_and_says_so(trained, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingHub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
        done = push(trained[0], tmp_path / "model", HF_ENDPOINT=endpoint, HF_TOKEN="hf_" + "x" * 34)
        hub.shutdown()
    assert done.returncode == 2, done.stderr
    assert "--push-to-hub 'me/my-model': the upload failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_hub_out_of_reach_is_reported_before_anything_is_made(trained, tmp_path):
    done = push(trained[0], tmp_path / "model", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "--push-to-hub 'me/my-model': the Hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_kill_loses_no_row_and_repeats_none(trained, recipe):
    """SIGKILL after the checkpoint of step 2; the resumed run trains the control's rows, each step once."""
    control = records(trained[0], "train")
    run = recipe.parent / "runs" / "killed"
    process = prepared.Popen(
        [sys.executable, "-m", "sandbox_rl.cli", "train", str(recipe), "name=killed", "evaluation.tasks=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while last_complete(run / "checkpoints") is None and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # A checkpoint that the kill cut short must not be taken.
    shutil.copytree(run / "checkpoints" / "checkpoint-2", run / "checkpoints" / "checkpoint-3")
    (run / "checkpoints" / "checkpoint-3" / "optimizer.pt").write_bytes(b"torn")

    sandbox_rl("train", str(recipe), "name=killed", "evaluation.tasks=0", "--resume")
    again = [record["episode_id"] for record in records(run, "train")]
    assert len(again) == len(set(again)) == len(control)
    rows = {
        re.sub(r"-r1$", "", record["episode_id"]): (record["step"], record["task_id"])
        for record in records(run, "train")
    }
    expected = {record["episode_id"]: (record["step"], record["task_id"]) for record in control}
    assert rows == expected
    assert (run / "export" / "model.safetensors").is_file()
