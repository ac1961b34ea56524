"""Every shipped recipe is valid; those that need no network pass the dry run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from transformers import Qwen3Config

from sandbox_rl.config.load import load_recipe
from sandbox_rl.display import Silent
from sandbox_rl.errors import ConfigError
from sandbox_rl.model_builders import training_arguments
from sandbox_rl.policies.config import VLLMSettings
from sandbox_rl.runs.dry_run import dry_run
from sandbox_rl.runs.launch import plan_launch
from sandbox_rl.tasks.prompts import load_prompt_set
from sandbox_rl.training.memory import estimate_memory, model_shape
from sandbox_rl.training.placement import GIB, Needs
from sandbox_rl.training.placement_plan import Training, plan_placement
from tests import prepared
from tests.smoke.support import TOKENIZER
from tests.unit.shapes import QWEN3_4B

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = RECIPES / "llm-in-sandbox"
ALL = sorted(p for p in RECIPES.rglob("*.yaml") if not p.parent.name.startswith("prompts"))
OFFLINE = ["math-cpu.yaml", "context-qa-cpu.yaml", "llm-in-sandbox/offline.yaml"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_valid_down_to_the_trainer_s_fields(path, tmp_path):
    recipe = load_recipe(path)
    args = training_arguments(recipe, tmp_path)
    if recipe.mode == "sync":
        assert args.generation_batch_size % args.num_generations == 0
    for source in recipe.data.sources:
        load_prompt_set(source.domain, [Path(d) for d in recipe.prompts])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_its_header_says_what_it_is(path):
    header = path.read_text().partition("\nname:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert path.stem.startswith("quickstart") or "estimated" in header


def test_the_paper_s_run_is_the_paper_s():
    recipe = load_recipe(RECIPES / "llm-in-sandbox" / "qwen3-4b.yaml")
    args = training_arguments(recipe, Path("unused"))
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-6, 0.01, 1.0)
    assert (args.epsilon, args.epsilon_high, args.beta, args.loss_type) == (0.2, 0.28, 0.0, "luspo")
    assert args.num_generations == args.generation_batch_size == 8  # a group on each of 8 processes
    assert (recipe.episode.max_turns, recipe.episode.max_tokens, recipe.episode.timeout_s) == (
        100,
        65_536,
        5400,
    )
    assert not recipe.curriculum.active


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_for_cards_says_in_one_line_that_there_is_none(path):
    recipe = load_recipe(path)
    policy = recipe.policy
    assert isinstance(policy, VLLMSettings), "all of them are served"

    def start():
        plan_launch(recipe.launch, cards=0, training=0, environment={})
        return plan_placement(Training((), 1, lambda _: Needs(0, 0, 0, 0), recipe.mode), policy)

    if path.stem == "offline":
        assert start().kind == "cpu"
        return

    with pytest.raises(ConfigError, match=r"there is none here|no CUDA card is to be seen") as refused:
        start()
    assert "\n" not in str(refused.value)


def test_the_paper_s_run_is_planned_at_its_full_length(tmp_path, monkeypatch):
    """Its dry run on eight cards that are made up: a model of its shape, sharded, with 65,536 tokens after
    the longest prompt, and servers in what an update leaves."""
    monkeypatch.setenv("SANDBOX_RL_FAKE_CARDS", "8x NVIDIA H100 80GB")
    model = tmp_path / "model"
    shape = {"max_position_embeddings": 262_144, "eos_token_id": TOKENIZER.eos_token_id}
    Qwen3Config(**(QWEN3_4B.to_dict() | shape)).save_pretrained(model)
    TOKENIZER.save_pretrained(model)
    rows = [{"q": f"What does line {n} say?", "a": str(n)} for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"type": "table", "path": "rows.jsonl", "domain": "context_qa", "scorer": "rouge_l"}
    source["accept_degenerate"] = True  # the questions name their answers
    raw = yaml.safe_load((PAPER / "qwen3-4b.yaml").read_text())
    raw["model"]["path"], raw["policy"]["python"] = str(model), sys.executable
    raw["data"]["sources"] = [source | {"columns": {"prompt": "q", "answer": "a"}}]
    raw["output_dir"] = str(tmp_path / "runs")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    recipe, told = load_recipe(tmp_path / "recipe.yaml"), Told()
    dry_run(recipe, base_dir=tmp_path, display=told)
    assert "ok  launch: 8 processes, fsdp2.yaml; 64 episodes an update, 8 of each process" in told.lines, (
        "the paper's 8 x 8"
    )
    longest = int(
        next(re.search(r"the longest: (\d+)", line)[1] for line in told.lines if "longest:" in line)
    )
    args = training_arguments(recipe, tmp_path)
    expected = estimate_memory(
        model_shape(QWEN3_4B),
        args,
        recipe.model,
        prompt_tokens=longest,
        completion_tokens=65_536,
        sampled_rows=0,
        shards=8,
    )
    (memory,) = [line for line in told.lines if line.startswith("ok  memory: ")]
    assert memory == f"ok  memory: {expected}"
    # Each of eight processes loads 4.02e9 float32 weights; servers have them in bfloat16, for a while twice.
    (host,) = [line for line in told.lines if line.startswith("ok  host memory: ")]
    assert host.endswith(
        "estimated 119.9 GiB (8 x 15.0 GiB to load the model, 15.0 while weights are published)"
    )
    (placed,) = [line for line in told.lines if line.startswith("ok  placement: ")]
    taken = f"({expected.training / GIB:.1f} of 80 GiB)"
    assert f"shared: 8 x NVIDIA H100 80GB train {taken} with 8 servers on them" in placed


class Told(Silent):
    """What was said, by lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines += text.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_offline_recipes_pass_the_dry_run_and_write_nothing(name, tmp_path):
    command = [sys.executable, "-m", "sandbox_rl.cli", "train", str(RECIPES / name), "--dry-run"]
    if "vllm" in (RECIPES / name).read_text():
        command.append(f"policy.python={sys.executable}")  # an interpreter that can be run
    done = prepared.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ok  memory: estimated" in done.stdout
    assert "ok  reward" in done.stdout
    assert "as the model gets it:" in done.stdout
    assert re.search(r"its prompt: \d+ (bytes|tokens)", done.stdout)
    assert re.search(r"its gold answer '.+' → reward 1, by \w+", done.stdout)
    assert done.stdout.splitlines()[-1] == "ready: leave --dry-run out to train"
    assert list(tmp_path.iterdir()) == []
