"""What the optimizer updates has enough bits on every launch path that runs on a CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from sandbox_rl.config.load import load_recipe
from sandbox_rl.errors import ConfigError
from sandbox_rl.runs.export import export
from sandbox_rl.runs.train import train
from sandbox_rl.training.config import LoraSettings, ModelSettings
from sandbox_rl.training.grpo import grpo_config
from sandbox_rl.training.models import compute_dtype, load_model, load_trained, with_compute_dtype
from sandbox_rl.training.precision import check_precision, computing
from sandbox_rl.training.sft import IGNORE, fine_tune
from tests.smoke.precision_paths import RATE, updates
from tests.smoke.support import TOKENIZER, tiny_model
from tests.smoke.test_launch import in_two_processes

SMALL_UPDATES = {
    "name": "small-updates",
    "prompts": [str(Path(__file__).parents[2] / "recipes" / "prompts")],
    "data": {
        "sources": [
            {
                "type": "reasoning_gym",
                "dataset": "chain_sum",
                "size": 200,
                "domain": "arithmetic",
                "params": {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3},
            }
        ],
        "held_out": 0.1,
    },
    "episode": {
        "max_turns": 2,
        "max_tokens": 200,
        "turn_tokens": 32,
        "timeout_s": 600,
        "exec_timeout_s": 60,
    },
    "rollout": {"concurrency": 8},
    "evaluation": {"tasks": 0},
    "grpo": {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "num_generations": 8,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "activation_checkpointing": False,
        "save_steps": 2,
        # So raw a policy earns nothing; the entropy bonus gives a gradient all the same.
        "entropy_coef": 1.0,
    },
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> str:
    """A model whose checkpoint is stored in bfloat16."""
    directory = tmp_path_factory.mktemp("stored")
    tiny_model(TOKENIZER).to(torch.bfloat16).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_small_updates_in_bfloat16_are_those_of_the_arithmetic(tmp_path, adapters):
    moved, trainer = updates(tmp_path, adapters=adapters)
    assert moved.share >= 0.99
    assert adapters or moved.norms >= 0.99
    assert moved.cosine >= 0.99
    assert moved.dtypes == {torch.float32}
    assert trainer.log_probs == {torch.float32}


def test_the_arithmetic_finds_weights_that_round_their_updates_away(tmp_path):
    """Teeth: the same with weights that stay bfloat16."""
    moved, _ = updates(tmp_path, adapters=False, keep=torch.bfloat16)
    assert moved.share < 0.05
    assert moved.norms == 0
    assert moved.cosine < 0.5


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "fsdp2-lora"])
def test_two_processes_update_float32_masters(way, tmp_path):
    """FSDP2 by accelerate's own preparation: float32 shards, computed in bfloat16, log-probs not rounded."""
    lines = [
        line for line in in_two_processes("precision_paths", way, str(tmp_path)) if line.startswith("rank")
    ]
    assert len(lines) == 2, lines
    for line in lines:
        share, norms, cosine = (
            float(re.search(rf"{name} ([\d.]+)", line)[1]) for name in ("moved", "norms", "cosine")
        )
        assert share >= 0.99
        assert way.endswith("lora") or norms >= 0.99
        assert cosine >= 0.99
        assert line.endswith("types ['torch.float32'] log-probs ['torch.float32']")
    file = "adapter_model" if way.endswith("lora") else "model"
    saved = load_file(tmp_path / "checkpoint-4" / f"{file}.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_recipe_on_a_bfloat16_checkpoint_moves_its_weights_and_exports_bfloat16(stored, tmp_path):
    """`dtype: auto`. The checkpoint keeps the masters; whoever resumes has them, whoever exports asks."""
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(SMALL_UPDATES | {"model": {"path": stored}, "output_dir": str(tmp_path / "runs")})
    )
    result = train(load_recipe(tmp_path / "recipe.yaml"), base_dir=tmp_path)
    start = load_file(Path(stored) / "model.safetensors")
    end = load_file(result.run / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert {tensor.dtype for tensor in end.values()} == {torch.float32}
    same = {name: int((end[name] == start[name].float()).sum()) for name in start}
    assert sum(same.values()) <= 0.01 * sum(tensor.numel() for tensor in start.values())
    norms = [name for name in start if "norm" in name]
    assert sum(same[name] for name in norms) <= 0.01 * sum(start[name].numel() for name in norms)
    again = export(result.run, tmp_path / "again")
    for directory in (result.export, again):
        exported = load_file(directory / "model.safetensors")
        assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
        assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
        assert all(torch.equal(exported[name], end[name].bfloat16()) for name in end)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4)], ids=["full", "lora"])
def test_what_is_loaded_for_training(stored, lora):
    settings = with_compute_dtype(ModelSettings(path=stored, lora=lora))
    assert settings.dtype == "bfloat16"
    assert load_trained(settings).dtype == (torch.float32 if lora is None else torch.bfloat16)
    assert load_model(settings).dtype == torch.bfloat16
    assert compute_dtype(ModelSettings(path="tiny")) == torch.float32


def test_float32_weights_under_the_sampler_s_context_are_those_of_bfloat16(stored):
    """To rounding: the sampler, the loss and a server of bfloat16 weights see one policy."""
    masters = AutoModelForCausalLM.from_pretrained(stored, dtype="float32").eval()
    low = AutoModelForCausalLM.from_pretrained(stored, dtype="bfloat16").eval()
    ids = torch.randint(10, 200, (2, 64), generator=torch.Generator().manual_seed(0))

    def log_probs(model, dtype=None):
        with torch.no_grad(), computing(model.device, dtype):
            return model(ids).logits.float().log_softmax(-1)

    right = log_probs(masters)
    assert (log_probs(masters, torch.bfloat16) - log_probs(low)).abs().mean() < 0.01
    assert 0 < (log_probs(masters, torch.bfloat16) - right).abs().max() < 0.1


def make(tmp_path, dtype=torch.bfloat16, **block):
    return grpo_config(
        {"per_device_train_batch_size": 8} | block,
        checkpoints=tmp_path,
        name="x",
        seed=0,
        estimator="paper",
        max_tokens=100,
        dtype=dtype,
    )


def test_the_recipe_decides_what_is_computed_in_whatever_launches_it(tmp_path, monkeypatch):
    assert make(tmp_path).mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make(tmp_path, torch.float32).mixed_precision == "no"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"bf16": True}, "grpo.bf16' = True belongs elsewhere: set model.dtype"),
        ({"fp16": True}, "grpo.fp16' = True belongs elsewhere: set model.dtype"),
        ({"bf16_full_eval": True}, "grpo.bf16_full_eval: true, expected false; it rounds the trained"),
    ],
)
def test_what_would_round_the_trained_weights_is_one_line(tmp_path, block, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **block)


def test_deepspeed_s_bfloat16_masters_are_refused(tmp_path):
    """Its default, float32 masters beside a bfloat16 module, is what is wanted."""
    args = GRPOConfig(str(tmp_path), use_cpu=True)

    class Plugin:
        deepspeed_config = {"bf16": {"enabled": True}}  # noqa: RUF012

    args.deepspeed_plugin = Plugin()
    check_precision(args)
    Plugin.deepspeed_config["bf16"]["bf16_master_weights_and_grads"] = True
    with pytest.raises(ConfigError, match="bf16_master_weights_and_grads: true, expected false"):
        check_precision(args)


def test_a_warm_up_is_computed_in_bfloat16_without_a_card(tmp_path):
    """transformers refuses bf16 there unless it is told that no card is meant."""
    model = tiny_model(TOKENIZER)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    rows = [{"input_ids": [*range(10, 30)], "labels": [IGNORE] * 5 + [*range(15, 30)]}] * 4
    fields = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    fine_tune(model, TOKENIZER, rows, output_dir=tmp_path, fields=fields, seed=0, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
