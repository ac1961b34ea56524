"""The command line as a person meets it: help, one line per mistake, exit codes, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sandbox_rl.training.tiny import tiny_model, tiny_tokenizer
from tests import prepared
from tests.processes import command, tree_of

RECIPE = {
    "name": "r",
    "model": {"path": "tiny", "dtype": "float32"},
    "prompts": [str(Path(__file__).parents[3] / "recipes" / "prompts")],
    "data": {
        "sources": [{"type": "reasoning_gym", "dataset": "chain_sum", "size": 40, "domain": "arithmetic"}]
    },
    "warmup": {"episodes": 8},
    "reward": {"scorer": "exact", "workers": 1},  # a worker that has reasoning-gym takes seconds to start
    "grpo": {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1},
}


def sandbox_rl(*arguments, cwd, run=prepared.run, **environment):
    command = [sys.executable, "-m", "sandbox_rl.cli", *map(str, arguments)]
    return run(command, cwd=cwd, env=os.environ | environment)


def from_nothing(command, **how):
    """In an interpreter of its own, which also says what libraries say while they are imported."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **how)


def refused(tmp_path, *overrides, command=("train",), run=prepared.run):
    """The one line with which a run is refused; nothing else may be there afterwards."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    before = sorted(tmp_path.rglob("*"))
    done = sandbox_rl(*command, "r.yaml", *overrides, cwd=tmp_path, run=run)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before
    return lines[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of models, each broken in one way."""
    root = tmp_path_factory.mktemp("models")
    for name in ("good", "no_template", "no_eos", "short"):
        tokenizer = tiny_tokenizer()
        model = tiny_model(tokenizer)
        if name == "short":
            model.config.max_position_embeddings = 16
        model.save_pretrained(root / name)
        if name == "no_template":
            tokenizer.chat_template = None
        if name == "no_eos":
            tokenizer.eos_token = None
        tokenizer.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("command", ["", "train", "eval", "warmup", "export"])
def test_every_command_explains_itself(tmp_path, command):
    done = sandbox_rl(*filter(None, [command]), "--help", cwd=tmp_path, run=from_nothing)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert "--help" in done.stdout


@pytest.mark.parametrize("command", ["train", "eval", "warmup"])
def test_an_unknown_key_is_refused_by_every_command(tmp_path, command):
    message = refused(tmp_path, "episode.max_turn=3", command=(command,), run=from_nothing)
    assert "did you mean 'max_turns'?" in message


@pytest.mark.slow
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["grpo.learning_rat=1"], "unknown key 'grpo.learning_rat'"),
        (["grpo.use_vllm=true"], "'grpo.use_vllm' = True belongs elsewhere: set policy.type"),
        (["grpo.per_device_train_batch_size=6"], "splits groups of num_generations=4"),
        (["output_dir=r.yaml/runs"], "output_dir: 'r.yaml/runs', but"),
        (["warmup.expert=no.module:f"], "warmup.expert 'no.module:f' cannot be imported"),
        (["data.sources=[{type: table, path: none.jsonl}]"], "none.jsonl"),
        (["warmup=null"], "model.path: 'tiny' has random weights"),
        (["curriculum.domain_weights={maths: 1}"], "no training task is of 'maths'"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(tmp_path, overrides, expected, dry):
    assert expected in refused(tmp_path, *overrides, command=("train", *dry))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("nowhere/to-be-found", "model.path: 'nowhere/to-be-found' cannot be loaded"),
        ("no_template", "no chat template"),
        ("no_eos", "no EOS token"),
        ("short", "of the 16 that the model takes, expected at least"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(tmp_path, models, model, expected):
    path = model if "/" in model else models / model
    message = refused(tmp_path, f"model.path={path}", "warmup=null", command=("train", "--dry-run"))
    assert expected in message


@pytest.mark.slow
def test_a_bubblewrap_that_may_not_make_namespaces_is_explained(tmp_path):
    """The script says what bubblewrap says where the kernel forbids user namespaces."""
    fake = tmp_path / "bwrap"
    fake.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "bubblewrap 0.11.0"; exit 0; fi\n'
        'echo "bwrap: No permissions to create new namespace, likely because the kernel does not allow '
        'non-privileged user namespaces." >&2\nexit 1\n'
    )
    fake.chmod(0o755)
    message = refused(tmp_path, f"sandbox.bwrap={fake}", command=("train", "--dry-run"))
    assert "namespace" in message
    assert "sysctl" in message or "userns" in message


@pytest.mark.slow
def test_a_dry_run_names_all_that_is_missing(tmp_path):
    missing = ("sandbox.bwrap=/nowhere/bwrap", "model.path=nowhere/to-be-found", "warmup=null")
    message = refused(tmp_path, *missing, command=("train", "--dry-run"))
    assert "not ready: 2 things are missing" in message
    done = sandbox_rl("train", "--dry-run", "r.yaml", *missing, cwd=tmp_path)
    named = [line for line in done.stdout.splitlines() if line.startswith("missing  ")]
    assert ["nowhere/to-be-found" in named[0], "/nowhere/bwrap" in named[1]] == [True, True]
    assert "ready: leave" not in done.stdout


def test_debugging_shows_the_traceback(tmp_path):
    done = sandbox_rl("train", "missing.yaml", cwd=tmp_path, SANDBOX_RL_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_one_line(tmp_path):
    endless = RECIPE | {"warmup": {"episodes": 5_000}}
    (tmp_path / "r.yaml").write_text(
        json.dumps(endless | {"data": {"sources": [RECIPE["data"]["sources"][0] | {"size": 10_000}]}})
    )
    process = prepared.Popen(
        [sys.executable, "-m", "sandbox_rl.cli", "train", "r.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not any(command(pid)[:1] == ["bwrap"] for pid in tree_of(process.pid)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "Interrupted" in stderr.splitlines()[-1]
