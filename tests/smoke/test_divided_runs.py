"""`sandbox-rl train` with a model that two processes divide: publications, updates, resume, export."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sandbox_rl.journal import read_journal
from sandbox_rl.runs.check import check_run
from tests import prepared
from tests.faults.served import served
from tests.smoke.support import TOKENIZER, saved_model, tiny_model
from tests.smoke.test_data_order import RECIPE

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="pip install 'sandbox-rl[deepspeed]' to run this"
)


def run(config: str, *arguments: str) -> str:
    process = prepared.start("tests.smoke.divided", "start", config, *arguments, DS_ACCELERATOR="cpu")
    try:
        printed = process.communicate(timeout=560)[0]
    finally:
        process.kill()
    assert process.returncode == 0, printed
    return printed


def assert_not_resumed_whole(*arguments: str) -> None:
    """Two processes that each hold the model would not find the optimizer's state."""
    code = (
        "import sys; from tests import prepared; prepared.for_launchers()\n"
        "from sandbox_rl.cli import main; main(sys.argv[1:])"
    )
    whole = ["launch.config=null", "launch.processes=2"]
    done = prepared.run([sys.executable, "-c", code, "train", *arguments, *whole, "--resume"])
    assert done.returncode == 2, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "checkpoint-3 was saved with the model divided" in said
    assert "set launch.config=" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("config", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_a_divided_model_is_trained_published_resumed_and_exported(tmp_path, config):
    """By the configuration that is shipped; held-out tasks are asked before the model is divided."""
    told = RECIPE | {
        "name": config,
        "output_dir": str(tmp_path / "runs"),
        "model": {"path": saved_model(tmp_path / "model"), "dtype": "bfloat16"},
        "policy": {"type": "vllm", "engine": "external"},
        "launch": {"config": config},
        "reward": {"scorer": "tests.vllm.rewards:even", "workers": 1},
        "episode": RECIPE["episode"] | {"max_turns": 1, "max_tokens": 200, "turn_tokens": 100},
        "rollout": RECIPE["rollout"] | {"overlong": "score"},  # all of them use up their turn
        "evaluation": {"tasks": 2},
        "grpo": RECIPE["grpo"] | {"max_steps": 2, "num_generations": 4, "learning_rate": 1.0e-4},
    }
    (source,) = RECIPE["data"]["sources"]
    source = source | {"gold_is_answer": False, "accept_degenerate": True}  # as the scorer knows no gold
    told["data"] = RECIPE["data"] | {"sources": [source]}
    recipe, directory = tmp_path / "r.yaml", tmp_path / "runs" / config
    recipe.write_text(yaml.safe_dump(told))
    with served() as server:
        given = [str(recipe), f"policy.base_urls=[{server}]"]
        run(config, *given)
        first = load_file(directory / "export" / "model.safetensors")
        run(config, *given, "grpo.max_steps=3", "--resume")
        assert_not_resumed_whole(*given, "grpo.max_steps=4")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "grad_norm" in line] == [1, 2, 3]
    assert sum("eval/accuracy" in line for line in lines) == 3
    records = list(read_journal(directory / "journal"))
    train = [r for r in records if r["phase"] == "train"]
    # Two groups on each process in each step, and whole there; a group's number is that in the whole run.
    groups = Counter((r["step"], r["episode_id"].partition("-r")[0].rpartition("-")[0]) for r in train)
    assert groups == {(step, f"train-{4 * step + n:06d}"): 4 for step in range(3) for n in range(4)}
    assert [path.name for path in directory.parent.iterdir() if not path.name.startswith(".")] == [config]
    versions = {(r["step"], t["weight_version"]) for r in records for t in r["turns"]}
    assert {(0, 0), (1, 1), (2, 2)} <= versions
    assert check_run(directory).violation is None
    last = load_file(directory / "export" / "model.safetensors")
    start = dict(tiny_model(TOKENIZER).named_parameters())
    assert last.keys() == first.keys() == start.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in last.values())
    for before, after in ((start, first), (first, last)):
        moved = [name for name in after if not torch.equal(before[name].bfloat16(), after[name])]
        assert len(moved) > len(after) / 2
